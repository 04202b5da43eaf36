// What a conversation asks of the model, besides its messages.
//
// Only what was set is sent: the server knows better defaults for its model than this page. A field left empty shows
// the server's default, if `/props` names it.

/** Sampling parameters by their names on the wire. `integer` ones take whole numbers. */
export const PARAMETERS = [
  { name: 'temperature', min: 0, max: 2 },
  { name: 'top_p', min: 0, max: 1 },
  { name: 'top_k', min: 0, max: 1000, integer: true },
  { name: 'min_p', min: 0, max: 1 },
  { name: 'repeat_penalty', min: 0.5, max: 2 },
  { name: 'seed', min: 0, max: 4294967295, integer: true },
  { name: 'max_tokens', min: 1, max: 1000000, integer: true },
];

/** What the answer has to be. */
export const FORMATS = ['text', 'object', 'schema'];

/** Nothing asked for. */
export const EMPTY = { system: '', model: '', sampling: {}, format: 'text', schema: '' };

/** Returns settings with only known fields and values in range, from anything. */
export function cleaned(from) {
  const sampling = {};
  for (const parameter of PARAMETERS) {
    const value = from?.sampling?.[parameter.name];
    if (accepts(parameter, value)) sampling[parameter.name] = value;
  }
  const text = (name) => (typeof from?.[name] === 'string' ? from[name] : '');
  const format = FORMATS.includes(from?.format) ? from.format : 'text';
  return { system: text('system'), model: text('model'), sampling, format, schema: text('schema') };
}

/** Whether a parameter can have this value. */
export function accepts({ min, max, integer }, value) {
  return typeof value === 'number' && value >= min && value <= max && (!integer || Number.isInteger(value));
}

/** Returns a JSON schema from its text; throws if it is none. */
export function schemaOf(text) {
  const schema = JSON.parse(text);
  if (schema === null || typeof schema !== 'object' || Array.isArray(schema)) throw new TypeError('not an object');
  return schema;
}

/** Returns the fields of a request that settings ask for. Throws if the schema is no JSON. */
export function fieldsOf(settings) {
  const fields = { ...settings.sampling };
  if (settings.format === 'object') fields.response_format = { type: 'json_object' };
  if (settings.format === 'schema') {
    const json_schema = { name: 'answer', strict: true, schema: schemaOf(settings.schema) };
    fields.response_format = { type: 'json_schema', json_schema };
  }
  return fields;
}

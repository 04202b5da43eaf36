// Conversations as a JSON file: what export writes and import reads.
//
//   { "format": "nibble conversations", "version": 1, "exported": "2025-01-31T12:00:00.000Z",
//     "conversations": [{ id, title, created, updated, first, settings, messages: [...] }] }
//
// An imported file may come from anyone. Only known fields of the right type are taken, texts stay texts (they are
// shown through the same sanitizer as a model's answers), and what does not hang together is refused as a whole.

import { cleaned } from '../model/settings.js';

const FORMAT = 'nibble conversations';
const VERSION = 1;
const ID = /^[0-9A-Za-z-]{1,64}$/;
const FINISHES = ['stop', 'length', 'stopped', 'lost', 'failed'];
const TITLE_CHARACTERS = 200;

/** Why a file cannot be imported: `reason` is a key of the words, `values` what they name. */
export class Refusal extends Error {
  constructor(reason, values = {}) {
    super(reason);
    this.reason = reason;
    this.values = values;
  }
}

/** Returns the text of a file with these conversations; `messagesOf` gives the messages of each. */
export async function toText(conversations, messagesOf) {
  const records = [];
  for (const conversation of conversations) {
    const messages = await messagesOf(conversation.id);
    messages.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
    records.push({ ...conversation, messages: messages.map(({ conversation: _, ...message }) => message) });
  }
  const file = { format: FORMAT, version: VERSION, exported: new Date().toISOString(), conversations: records };
  return `${JSON.stringify(file, null, 1)}\n`;
}

/** Returns the conversations in a text, each with its `messages`. Throws a `Refusal`. */
export function fromText(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Refusal('import_not_json');
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Refusal('import_other_format');
  if (!(file.version <= VERSION)) throw new Refusal('import_newer', { version: String(file.version) });
  return file.conversations.map(conversationFrom);
}

function isId(value) {
  return typeof value === 'string' && ID.test(value);
}

function conversationFrom(record, index) {
  const refuse = () => new Refusal('import_damaged', { number: index + 1 });
  if (!isId(record?.id) || !Array.isArray(record.messages)) throw refuse();
  const messages = record.messages.map((message) => messageFrom(message, record.id));
  if (messages.includes(null)) throw refuse();
  const ids = new Set(messages.map((message) => message.id));
  const orphan = messages.some((message) => message.parent !== null && !ids.has(message.parent));
  if (ids.size !== messages.length || orphan) throw refuse();
  const created = time(record.created);
  return {
    id: record.id,
    title: string(record.title).slice(0, TITLE_CHARACTERS),
    created,
    updated: time(record.updated, created),
    first: ids.has(record.first) ? record.first : null,
    settings: cleaned(record.settings),
    messages,
  };
}

function messageFrom(record, conversation) {
  const known = isId(record?.id) && ['user', 'assistant'].includes(record.role);
  if (!known || !(record.parent === null || isId(record.parent))) return null;
  return {
    id: record.id,
    conversation,
    parent: record.parent,
    next: isId(record.next) ? record.next : null,
    role: record.role,
    content: string(record.content),
    reasoning: string(record.reasoning),
    created: time(record.created),
    model: string(record.model),
    json: record.json === true,
    finish: FINISHES.includes(record.finish) ? record.finish : 'stop',
    statistics: statisticsFrom(record.statistics),
    problem: null,
  };
}

function statisticsFrom(record) {
  if (!record || typeof record !== 'object') return null;
  const names = ['read', 'readMs', 'cached', 'written', 'writtenMs'];
  return Object.fromEntries(names.map((name) => [name, Number.isFinite(record[name]) ? record[name] : null]));
}

function string(value) {
  return typeof value === 'string' ? value : '';
}

function time(value, otherwise = Date.now()) {
  // JavaScript's dates end there.
  return Number.isFinite(value) && Math.abs(value) <= 8.64e15 ? value : otherwise;
}

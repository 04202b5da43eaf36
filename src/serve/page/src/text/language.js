// Which language a text is in, as far as it changes how it is set: the same code point has another shape in Chinese
// than in Japanese.

/** Returns a value for `lang`; `undefined` for the page's own. */
export function languageOf(text) {
  const start = text.slice(0, 2000);
  if (/[\u3040-\u30ff]/.test(start)) return 'ja';
  if (/[\uac00-\ud7af]/.test(start)) return 'ko';
  if (/[\u3400-\u9fff]/.test(start)) return 'zh-Hans';
  return undefined;
}

/** Returns the first characters of a text on one line; never half a character. */
export function firstOf(text, characters) {
  const line = text.replace(/\s+/g, ' ').trim();
  const all = [...line];
  return all.length > characters
    ? `${all
        .slice(0, characters - 1)
        .join('')
        .trimEnd()}…`
    : line;
}

// The words of the interface, in the language of the browser or of the person's choice.

import { en } from './en.js';
import { zh } from './zh.js';

export const LANGUAGES = {
  en: { name: 'English', tag: 'en', words: en },
  zh: { name: '中文', tag: 'zh-Hans', words: zh },
};

let language = LANGUAGES.en;

/** Takes a language by its name in `LANGUAGES`; for `auto`, the browser's first one that this page has. */
export function speak(name) {
  const wanted = name === 'auto' ? navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase()) : [name];
  language = LANGUAGES[wanted.find((tag) => Object.hasOwn(LANGUAGES, tag))] ?? LANGUAGES.en;
  document.documentElement.lang = language.tag;
}

/** Returns the words for a key, with values in the place of their names; `count` chooses the words for one. */
export function t(key, values = {}) {
  const { words } = language;
  const text = (values.count === 1 && words[`${key}_one`]) || (words[key] ?? key);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (Object.hasOwn(values, name) ? String(values[name]) : whole));
}

/** Returns a number as the language writes it. */
export function number(value, digits = 0) {
  return new Intl.NumberFormat(language.tag, { maximumFractionDigits: digits }).format(value);
}

/** Returns a share as a percentage. */
export function percent(share) {
  return new Intl.NumberFormat(language.tag, { style: 'percent' }).format(share);
}

/** Returns milliseconds as seconds. */
export function seconds(milliseconds) {
  return t('seconds', { n: number(milliseconds / 1000, milliseconds < 10000 ? 1 : 0) });
}

// What a person does with conversations: open, rename, delete, search, export, import, and their settings.

import * as database from '../store/database.js';
import { load, save } from '../store/preferences.js';
import { Refusal, fromText, toText } from '../store/transfer.js';
import { alternatives } from '../store/tree.js';
import { firstOf } from '../text/language.js';
import { number, t } from '../words/index.js';
import { forget, keep, readMessages } from './keep.js';
import { EMPTY } from './settings.js';
import { change, currentConversation, currentSettings, messagesOf, state } from './state.js';

const TITLE_CHARACTERS = 60;

/** Returns all conversations, those last used first. */
export function inOrder() {
  return [...state.conversations.values()].sort((a, b) => b.updated - a.updated);
}

/** Shows a conversation; `null` for a new one. */
export async function open(id) {
  const known = id !== null && state.conversations.has(id) ? id : null;
  if (known) await readMessages(known);
  change({ current: known, editing: null, drawer: false });
  // The address survives a reload. It says nothing to the server: browsers keep what follows `#`.
  const address = known ? `#${known}` : ' ';
  if (location.hash !== address.trim())
    history.pushState(null, '', known ? address : location.pathname + location.search);
}

/** Opens what the address names. */
export function openAddress() {
  return open(location.hash.slice(1) || null);
}

/** Makes a conversation that begins with this text, and shows it. */
export async function begin(text) {
  const now = Date.now();
  const conversation = {
    id: crypto.randomUUID?.() ?? randomId(),
    title: firstOf(text, TITLE_CHARACTERS),
    created: now,
    updated: now,
    first: null,
    settings: state.defaults,
  };
  change({ messages: new Map(state.messages).set(conversation.id, new Map()) });
  await keep({ conversations: [conversation] });
  await open(conversation.id);
  // Browsers may clear the storage of pages that did not ask.
  navigator.storage?.persist?.().catch(() => {});
  return conversation;
}

/** Returns an id where `randomUUID` is missing: on pages that the browser does not call secure. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Gives a conversation another title. */
export function rename(id, title) {
  const conversation = state.conversations.get(id);
  const line = firstOf(title, 200);
  if (conversation && line) return keep({ conversations: [{ ...conversation, title: line }] });
}

/** Deletes a conversation, and stops what is being written in it. */
export async function remove(id) {
  state.running.get(id)?.controller.abort();
  const shown = state.current === id;
  await forget(id);
  if (shown) await open(null);
}

/** Shows another alternative of a message: the next one, or for -1 the one before. */
export function choose(message, step) {
  const messages = messagesOf(message.conversation);
  const all = alternatives(messages, message.parent);
  const other = all[all.findIndex(({ id }) => id === message.id) + step];
  if (other) return keep(pointingTo(other));
}

/** Returns the change that makes a message the one that is shown among its alternatives. */
export function pointingTo(message) {
  if (message.parent === null) {
    const conversation = state.conversations.get(message.conversation);
    return { conversations: [{ ...conversation, first: message.id }] };
  }
  const parent = messagesOf(message.conversation).get(message.parent);
  return { messages: [{ ...parent, next: message.id }] };
}

/** Changes settings of what is shown, and of new conversations. */
export function setSettings(part) {
  const settings = { ...currentSettings(), ...part };
  save('settings', settings);
  change({ defaults: settings });
  const conversation = currentConversation();
  if (conversation) return keep({ conversations: [{ ...conversation, settings }] });
}

/** Takes everything back that was set. */
export function resetSettings() {
  return setSettings(EMPTY);
}

// The search whose result is wanted: an older one may end later.
let latest = 0;

/** Searches titles and messages; an empty query ends it. */
export async function search(query) {
  const mine = ++latest;
  const words = query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
  change({ query, found: words.length ? state.found : null });
  if (!words.length) return;
  // All words have to be in the title or in one message.
  const has = (text) => words.every((word) => text.includes(word));
  const excerpts = new Map();
  for (const { id, title } of state.conversations.values()) if (has(title.toLocaleLowerCase())) excerpts.set(id, '');
  await database.eachMessage((message) => {
    const lower = message.content.toLocaleLowerCase();
    if (!excerpts.get(message.conversation) && has(lower)) {
      excerpts.set(message.conversation, excerptAround(message.content, lower.indexOf(words[0])));
    }
    return mine === latest;
  });
  if (mine !== latest) return;
  const found = inOrder().filter(({ id }) => excerpts.has(id));
  change({ found: found.map(({ id }) => ({ id, excerpt: excerpts.get(id) })) });
}

function excerptAround(text, at) {
  const start = Math.max(0, at - 20);
  return (start > 0 ? '…' : '') + firstOf(text.slice(start, start + 200), 90);
}

/** Saves conversations to a file: one, or for `null` all. */
export async function exportToFile(id) {
  const conversations = id === null ? inOrder() : [state.conversations.get(id)];
  const text = await toText(conversations, database.messagesOf);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  link.download = `nibble-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Takes the conversations in a file that are not here yet. */
export async function importFile(file) {
  let records;
  try {
    records = fromText(await file.text());
  } catch (error) {
    const text = error instanceof Refusal ? t(error.reason, error.values) : t('unexpected', { detail: error.message });
    return change({ notice: { text } });
  }
  const fresh = records.filter(({ id }) => !state.conversations.has(id));
  const conversations = fresh.map(({ messages: _, ...conversation }) => conversation);
  await keep({ conversations, messages: fresh.flatMap(({ messages }) => messages) });
  const key = fresh.length < records.length ? 'imported_some' : 'imported';
  change({ notice: { text: t(key, { n: number(fresh.length), of: number(records.length) }) } });
}

/** Takes an API key; an empty one forgets it. */
export function setKey(key) {
  save('key', key.trim() || null);
}

/** Whether there is an API key. */
export function hasKey() {
  return load('key', null) !== null;
}

// All that the page shows, in one place. Views read `state` and call actions; only actions change it, through `change`.

import { EMPTY, cleaned } from './settings.js';
import { load } from '../store/preferences.js';

/** The state. Records in it are replaced, never changed, so that views can tell by identity what is new. */
export const state = {
  /** Whether the stored conversations are there. */
  ready: false,
  /** Conversations by id. */
  conversations: new Map(),
  /** Messages by id, for each conversation that was opened. */
  messages: new Map(),
  /** The conversation that is shown; `null` for a new one. */
  current: null,
  /** What a new conversation asks for. */
  defaults: cleaned(load('settings', EMPTY)),
  /** What is being written: conversation id -> { message, phase, reading, progress, controller }. */
  running: new Map(),
  /** The server: 'unknown', 'ready', 'loading', 'gone' or 'locked', and what it told about itself. */
  server: { status: 'unknown', progress: null, models: [], context: null, defaults: {} },
  /** The conversations that a search found, as { id, excerpt }; `null` without one. */
  found: null,
  query: '',
  /** The dialog that is open, as { name, ... }. */
  dialog: null,
  /** Whether the list of conversations is shown over the page, on narrow windows, and beside it, on wide ones. */
  drawer: false,
  sidebar: load('sidebar', true),
  /** The message that is being edited. */
  editing: null,
  /** A sentence at the edge of the page, as { text }. */
  notice: null,
  language: load('language', 'auto'),
  theme: load('theme', 'auto'),
};

const listeners = new Set();
let scheduled = false;

/** Changes some of the state, and has it shown. */
export function change(part) {
  Object.assign(state, part);
  if (scheduled) return;
  scheduled = true;
  queueMicrotask(() => {
    scheduled = false;
    for (const listener of listeners) listener();
  });
}

/** Calls a function after every change; returns one that ends this. */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Returns the conversation that is shown, or `null`. */
export function currentConversation() {
  return state.conversations.get(state.current) ?? null;
}

/** Returns the settings in force for what is shown. */
export function currentSettings() {
  return currentConversation()?.settings ?? state.defaults;
}

/** Returns the messages of an opened conversation. */
export function messagesOf(conversation) {
  return state.messages.get(conversation) ?? new Map();
}

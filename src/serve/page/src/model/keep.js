// Changes of conversations and messages, in the state and in the browser's storage.

import * as database from '../store/database.js';
import { t } from '../words/index.js';
import { change, messagesOf, state } from './state.js';

// Other windows of this page learn here what one of them stored.
const channel = 'BroadcastChannel' in self ? new BroadcastChannel('nibble') : null;

/** Shows conversations and messages as they are now, and stores them unless `store` is false. */
export async function keep({ conversations = [], messages = [] }, { store = true } = {}) {
  show({ conversations, messages });
  if (store) await guarded(() => database.put({ conversations, messages }), { conversations, messages });
}

/** Forgets a conversation. */
export async function forget(id) {
  hide(id);
  await guarded(() => database.remove(id), { removed: id });
}

async function guarded(write, news) {
  try {
    await write();
    channel?.postMessage(news);
  } catch (error) {
    // A full disk shows as a QuotaExceededError, or as an aborted transaction without any error.
    const full = !error || error.name === 'QuotaExceededError' || error.name === 'AbortError';
    const text = full ? t('storage_full') : t('unexpected', { detail: error.message });
    change({ notice: { text } });
  }
}

function show({ conversations, messages }) {
  const all = new Map(state.conversations);
  for (const conversation of conversations) all.set(conversation.id, conversation);
  const trees = new Map(state.messages);
  for (const message of messages) {
    // A conversation that is not open is read from the storage when it is.
    const tree = trees.get(message.conversation);
    if (tree) trees.set(message.conversation, new Map(tree).set(message.id, message));
  }
  change({ conversations: all, messages: trees });
}

function hide(id) {
  const all = new Map(state.conversations);
  const trees = new Map(state.messages);
  all.delete(id);
  trees.delete(id);
  change({ conversations: all, messages: trees, current: state.current === id ? null : state.current });
}

channel?.addEventListener('message', ({ data }) => {
  if (data.removed) hide(data.removed);
  else show({ conversations: data.conversations ?? [], messages: data.messages ?? [] });
});

/** Reads all conversations. */
export async function readAll() {
  await database.open();
  const conversations = new Map((await database.conversations()).map((record) => [record.id, record]));
  change({ conversations, ready: true });
  if (!database.kept()) change({ notice: { text: t('not_kept') } });
}

/** Reads the messages of a conversation, unless they are there. */
export async function readMessages(id) {
  if (state.messages.has(id)) return messagesOf(id);
  const read = new Map((await database.messagesOf(id)).map((record) => [record.id, record]));
  change({ messages: new Map(state.messages).set(id, read) });
  return read;
}

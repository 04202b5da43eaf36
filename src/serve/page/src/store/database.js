// Conversations in the browser's IndexedDB.
//
// Conversations and messages are separate records, so that writing a long answer stores one message again and again,
// not the conversation, and two windows with the same conversation do not overwrite each other's messages.
//
//   conversations   { id, title, created, updated, first, settings }
//   messages        { id, conversation, parent, next, role, content, reasoning, created, ... }, index by conversation
//
// A browser may have no IndexedDB to give, in a private window for instance. Then everything stays in memory, and
// `kept()` returns false.

const NAME = 'nibble';
const VERSION = 1;

let database = null;
const memory = { conversations: new Map(), messages: new Map() };

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
    transaction.onerror = () => reject(transaction.error);
  });
}

/** Opens the database, or falls back to memory. */
export async function open() {
  try {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('conversations', { keyPath: 'id' });
      request.result.createObjectStore('messages', { keyPath: 'id' }).createIndex('conversation', 'conversation');
    };
    database = await settled(request);
    // A newer page in another window may want to change the layout.
    database.onversionchange = () => database.close();
  } catch {
    database = null;
  }
}

/** Whether what is stored will be there after the window is closed. */
export function kept() {
  return database !== null;
}

/** Returns all conversations, in no order. */
export async function conversations() {
  if (!database) return [...memory.conversations.values()];
  return settled(database.transaction('conversations').objectStore('conversations').getAll());
}

/** Returns the messages of a conversation, in no order. */
export async function messagesOf(conversation) {
  if (!database) return [...memory.messages.values()].filter((message) => message.conversation === conversation);
  return settled(database.transaction('messages').objectStore('messages').index('conversation').getAll(conversation));
}

/** Calls `visit` with every message of every conversation until it returns false. */
export async function eachMessage(visit) {
  if (!database) {
    for (const message of memory.messages.values()) if (visit(message) === false) return;
    return;
  }
  const request = database.transaction('messages').objectStore('messages').openCursor();
  await new Promise((resolve, reject) => {
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const cursor = request.result;
      if (!cursor || visit(cursor.value) === false) resolve();
      else cursor.continue();
    };
  });
}

/** Stores conversations and messages, all of them or none. Rejects with `QuotaExceededError` if the browser is full. */
export async function put({ conversations = [], messages = [] }) {
  if (!database) {
    for (const record of conversations) memory.conversations.set(record.id, record);
    for (const record of messages) memory.messages.set(record.id, record);
    return;
  }
  const transaction = database.transaction(['conversations', 'messages'], 'readwrite');
  for (const record of conversations) transaction.objectStore('conversations').put(record);
  for (const record of messages) transaction.objectStore('messages').put(record);
  await finished(transaction);
}

/** Removes a conversation and its messages. */
export async function remove(conversation) {
  if (!database) {
    memory.conversations.delete(conversation);
    for (const message of await messagesOf(conversation)) memory.messages.delete(message.id);
    return;
  }
  const transaction = database.transaction(['conversations', 'messages'], 'readwrite');
  transaction.objectStore('conversations').delete(conversation);
  const messages = transaction.objectStore('messages');
  const keys = await settled(messages.index('conversation').getAllKeys(conversation));
  for (const key of keys) messages.delete(key);
  await finished(transaction);
}

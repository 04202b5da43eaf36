// What a person does with messages: send, edit, regenerate, continue, stop. Each adds to the conversation's tree.

import { before, path } from '../store/tree.js';
import { begin, pointingTo, randomId } from './conversations.js';
import { keep } from './keep.js';
import { change, currentConversation, messagesOf, state } from './state.js';
import { write } from './write.js';

let latest = 0;

/** Returns a new message under `parent`. */
function messageOf(conversation, parent, role, content) {
  // Messages are in the order of their times, so no two of them may have the same one.
  latest = Math.max(Date.now(), latest + 1);
  return {
    id: randomId(),
    conversation: conversation.id,
    parent,
    next: null,
    role,
    content,
    reasoning: '',
    created: latest,
    model: '',
    json: false,
    finish: null,
    statistics: null,
    problem: null,
  };
}

/** Adds a message to the conversation, shows it, and stores it. */
async function add(message) {
  const { conversations = [], messages = [] } = pointingTo(message);
  const conversation = conversations[0] ?? state.conversations.get(message.conversation);
  const updated = { ...conversation, updated: message.created };
  await keep({ conversations: [updated], messages: [...messages, message] });
}

/** Sends a text at the end of what is shown, and has it answered. */
export async function send(text) {
  const conversation = currentConversation() ?? (await begin(text));
  if (state.running.has(conversation.id)) return;
  const last = path(conversation, messagesOf(conversation.id)).at(-1);
  const question = messageOf(conversation, last?.id ?? null, 'user', text);
  await add({ ...question, finish: 'stop' });
  await answer(question);
}

/** Has a message of the person's answered. */
async function answer(question) {
  const conversation = state.conversations.get(question.conversation);
  const reply = messageOf(conversation, question.id, 'assistant', '');
  await add(reply);
  await write(reply, { continues: false });
}

/** Puts an edited message beside the old one. A question is answered; an answer can be continued. */
export async function edit(message, text) {
  change({ editing: null });
  if (state.running.has(message.conversation)) return;
  const conversation = state.conversations.get(message.conversation);
  const edited = messageOf(conversation, message.parent, message.role, text);
  if (message.role === 'user') {
    await add({ ...edited, finish: 'stop' });
    await answer(edited);
  } else {
    await add({ ...edited, model: message.model, json: message.json, finish: 'stopped' });
  }
}

/** Writes another answer beside this one. */
export async function regenerate(message) {
  if (state.running.has(message.conversation)) return;
  const messages = messagesOf(message.conversation);
  const question = before(messages, message).at(-1);
  // An answer that never began is no alternative worth keeping.
  const empty = !message.content && !message.reasoning;
  if (empty) await write({ ...message, problem: null, finish: null }, { continues: false });
  else await answer(question);
}

/** Goes on with an answer that was stopped, cut off or lost. */
export async function continueAnswer(message) {
  if (state.running.has(message.conversation)) return;
  await write({ ...message, problem: null, finish: null }, { continues: true });
}

/** Stops what is being written in a conversation. */
export function stop(conversation = state.current) {
  state.running.get(conversation)?.controller.abort();
}

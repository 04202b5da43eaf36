// The tree that a conversation is.
//
// Every message knows its `parent`, the message it answers; the first ones have `null`. Two messages with the same
// parent are alternatives: an edit or a new answer adds one beside the old, and nothing is overwritten. `next` of a
// message, and `first` of the conversation, say which alternative is shown:
//
//   first ─► question ─┬─ answer 1
//                      └─ answer 2 ─► question      question.next = answer 2
//
// All functions are pure. `messages` is a Map from id to message.

/** Returns the messages with this parent, oldest first. */
export function alternatives(messages, parent) {
  const found = [...messages.values()].filter((message) => message.parent === parent);
  return found.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/** Returns the messages that are shown, from the first to the last. */
export function path(conversation, messages) {
  const children = new Map();
  for (const message of messages.values()) {
    if (!children.has(message.parent)) children.set(message.parent, []);
    children.get(message.parent).push(message);
  }
  const shown = [];
  let parent = null;
  let wanted = conversation.first;
  while (children.has(parent)) {
    const all = children.get(parent);
    // The newest one, where nothing was chosen or what was chosen is gone.
    const newest = all.reduce((a, b) => (b.created >= a.created ? b : a));
    const message = all.find((child) => child.id === wanted) ?? newest;
    shown.push(message);
    parent = message.id;
    wanted = message.next;
  }
  return shown;
}

/** Returns the place of a message among its alternatives, from 1, and how many there are. */
export function place(messages, message) {
  const all = alternatives(messages, message.parent);
  return { at: all.findIndex((other) => other.id === message.id) + 1, of: all.length };
}

/** Returns the messages before this one, from the first. */
export function before(messages, message) {
  const found = [];
  let parent = message.parent;
  while (parent !== null && messages.has(parent)) {
    const above = messages.get(parent);
    found.unshift(above);
    parent = above.parent;
  }
  return found;
}

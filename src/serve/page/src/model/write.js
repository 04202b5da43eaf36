// Has the model write one answer: asks the server, shows what arrives, stores it now and then, and says how it ended.

import { before } from '../store/tree.js';
import { report, untilLoaded } from './connection.js';
import { keep } from './keep.js';
import { Problem } from './problems.js';
import { chat } from './server.js';
import { fieldsOf } from './settings.js';
import { change, messagesOf, state } from './state.js';
import { Stopwatch } from './statistics.js';

// Tokens arrive faster than anyone reads, and a message that is shown or stored at every one costs more than the model.
const SHOW_MS = 60;
const STORE_MS = 1500;

/** Writes into `message`, an assistant's; `continues` goes on where it ends. */
export async function write(message, { continues }) {
  const controller = new AbortController();
  const writing = new Writing(message, controller);
  try {
    const body = bodyOf(message, continues);
    await writing.fill(body);
  } catch (error) {
    writing.fail(error);
  }
  await writing.end();
}

/** Returns the request. Throws a `Problem` if the settings make none. */
function bodyOf(message, continues) {
  const { settings } = state.conversations.get(message.conversation);
  const messages = before(messagesOf(message.conversation), message).map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: 'system', content: settings.system });
  if (continues) {
    const begun = { role: 'assistant', content: message.content };
    if (message.reasoning) begun.reasoning_content = message.reasoning;
    messages.push(begun);
  }
  let fields;
  try {
    fields = fieldsOf(settings);
  } catch {
    throw new Problem('schema');
  }
  const { models } = state.server;
  const model = models.includes(settings.model) ? settings.model : models[0];
  return { ...(model && { model }), messages, ...fields };
}

class Writing {
  constructor(message, controller) {
    const { settings } = state.conversations.get(message.conversation);
    this.message = { ...message, json: settings.format !== 'text' };
    this.controller = controller;
    this.stopwatch = new Stopwatch();
    this.shown = 0;
    this.stored = performance.now();
    this.timer = null;
    this.phase({ phase: 'waiting', reading: null, progress: null });
    keep({ messages: [{ ...this.message }] });
  }

  /** Shows what is being done. */
  phase(part) {
    const { conversation, id } = this.message;
    const now = { ...state.running.get(conversation), message: id, controller: this.controller, ...part };
    change({ running: new Map(state.running).set(conversation, now) });
  }

  /** Takes all that the server sends; waits for a model that is being loaded. */
  async fill(body) {
    const { signal } = this.controller;
    for (;;) {
      try {
        for await (const part of chat(body, signal)) this.take(part);
        return;
      } catch (error) {
        if (error.kind !== 'loading') throw error;
        report(error);
        this.phase({ phase: 'loading', progress: error.progress });
        await untilLoaded(signal, (progress) => this.phase({ progress }));
        this.phase({ phase: 'waiting' });
      }
    }
  }

  take({ content, reasoning, reading, finish, usage, timings, model }) {
    if (reading) this.phase({ phase: 'reading', reading });
    if (model) this.message.model = model;
    if (finish) this.message.finish = finish === 'length' ? 'length' : 'stop';
    if (usage) this.stopwatch.usage = usage;
    if (timings) this.stopwatch.timings = timings;
    if (!content && !reasoning) return;
    this.stopwatch.text();
    this.message.content += content ?? '';
    this.message.reasoning += reasoning ?? '';
    const phase = content ? 'writing' : 'reasoning';
    if (state.running.get(this.message.conversation)?.phase !== phase) this.phase({ phase });
    this.showSoon();
  }

  showSoon() {
    this.timer ??= setTimeout(() => this.show(), SHOW_MS);
  }

  show() {
    this.timer = null;
    // A deleted conversation has no place for it any more.
    if (!state.conversations.has(this.message.conversation)) return;
    const store = performance.now() - this.stored > STORE_MS;
    if (store) this.stored = performance.now();
    keep({ messages: [{ ...this.message, next: this.next() }] }, { store });
  }

  /** What follows may have been chosen meanwhile. */
  next() {
    return messagesOf(this.message.conversation).get(this.message.id)?.next ?? null;
  }

  fail(error) {
    if (error.name === 'AbortError') {
      this.message.finish = 'stopped';
      return;
    }
    const problem = error instanceof Problem ? error : new Problem('broken', { detail: error.message });
    // A stream that began and then broke is another thing than a request that failed.
    const begun = this.message.content || this.message.reasoning;
    this.message.finish = begun ? 'lost' : 'failed';
    this.message.problem = problem.toRecord();
    report(problem);
  }

  async end() {
    clearTimeout(this.timer);
    this.message.statistics = this.stopwatch.result();
    const { conversation } = this.message;
    const running = new Map(state.running);
    running.delete(conversation);
    change({ running });
    if (!state.conversations.has(conversation)) return;
    await keep({ messages: [{ ...this.message, next: this.next() }] });
  }
}

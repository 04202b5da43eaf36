// What the page knows of its server, and how it finds out: once at the start, and again and again while the server is
// loading or gone. A server that works is left alone.

import { Problem } from './problems.js';
import * as server from './server.js';
import { change, state } from './state.js';

const LOADING_MS = 1000;
const GONE_MS = 3000;

let timer = null;

/** Asks the server how it is, and goes on asking until it is ready or wants a key. Returns its status. */
export async function connect() {
  await ask();
  askAgain();
  return state.server.status;
}

function askAgain() {
  clearTimeout(timer);
  const { status } = state.server;
  if (status === 'loading') timer = setTimeout(connect, LOADING_MS);
  if (status === 'gone') timer = setTimeout(connect, GONE_MS);
}

async function ask() {
  try {
    const models = await server.models();
    // A server that loads models on demand has no properties before that.
    const { context, defaults } = await server.props().catch(ifNot('loading', { context: null, defaults: {} }));
    change({ server: { status: 'ready', progress: null, models, context, defaults } });
  } catch (error) {
    report(error);
  }
  if (state.server.status !== 'loading') return;
  const progress = await server.loaded().catch(() => null);
  change({ server: { ...state.server, progress: progress ?? state.server.progress } });
}

function ifNot(kind, otherwise) {
  return (error) => {
    if (error instanceof Problem && error.kind === kind) throw error;
    return otherwise;
  };
}

/** Takes note of what a problem says about the server. */
export function report(error) {
  const kind = error instanceof Problem ? error.kind : 'gone';
  const status = ['loading', 'gone', 'locked'].includes(kind) ? kind : state.server.status;
  // A server that answers, if only with an error, is there.
  const here = status === 'unknown' ? 'ready' : status;
  change({ server: { ...state.server, status: here, progress: error.progress ?? null } });
  askAgain();
  if (kind === 'locked' && state.dialog?.name !== 'key') change({ dialog: { name: 'key' } });
}

/** Waits until the model is loaded, and calls `progress` with how far it is. Throws if the server goes away. */
export async function untilLoaded(signal, progress) {
  for (;;) {
    await pause(LOADING_MS, signal);
    const status = await connect();
    progress(state.server.progress);
    if (status === 'ready') return;
    if (status !== 'loading') throw new Problem(status);
  }
}

async function pause(milliseconds, signal) {
  signal.throwIfAborted();
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(id);
      reject(signal.reason);
    };
    const id = setTimeout(() => {
      signal.removeEventListener('abort', abort);
      resolve();
    }, milliseconds);
    signal.addEventListener('abort', abort);
  });
}

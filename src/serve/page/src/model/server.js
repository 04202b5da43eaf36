// The server's routes, relative to where the page is, so that it also works under a path of a proxy.

import { load } from '../store/preferences.js';
import { events } from './events.js';
import { Problem, fromEvent, fromStatus, progressOf } from './problems.js';

function headers() {
  const key = load('key', null);
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      ...options,
      headers: { ...headers(), ...options.headers },
      credentials: 'same-origin',
      redirect: 'error',
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem('gone');
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw fromStatus(response.status, response.headers, body);
}

/** Returns the ids of the models. */
export async function models(signal) {
  const body = await (await request('v1/models', { signal })).json();
  const list = Array.isArray(body?.data) ? body.data : [];
  return list.map((model) => model?.id).filter((id) => typeof id === 'string');
}

/** Returns what the server says about its model: context and default parameters. */
export async function props(signal) {
  const body = await (await request('props', { signal })).json();
  const defaults = body?.default_generation_settings ?? {};
  const context = Number(defaults.n_ctx ?? body?.n_ctx);
  return { context: context > 0 ? context : null, defaults: defaults.params ?? defaults };
}

/** Returns how much of the model is loaded, from 0 to 1; `null` if that is not known. */
export async function loaded(signal) {
  const response = await fetch(new URL('health', document.baseURI), { headers: headers(), signal });
  return response.ok ? 1 : progressOf(await response.json().catch(() => null));
}

/**
 * Asks for an answer, and yields what comes of it: `{ reading: { done, total } }`, `{ content }`, `{ reasoning }`, `{
 * finish }`, `{ usage }`, `{ timings }`, `{ model }`. Throws a `Problem`; a stream without `[DONE]` is one of kind
 * `lost`.
 */
export async function* chat(body, signal) {
  const response = await request('v1/chat/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true }, return_progress: true }),
    signal,
  });
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === '[DONE]') return;
      const chunk = parsed(data);
      if (chunk === null) continue;
      if (chunk.error) throw fromEvent(chunk.error);
      for (const part of partsOf(chunk)) {
        finished ||= part.finish !== undefined;
        yield part;
      }
    }
  } catch (error) {
    if (error instanceof Problem || error.name === 'AbortError') throw error;
    if (!finished) throw new Problem('lost');
  }
  if (!finished) throw new Problem('lost');
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    return null;
  }
}

function* partsOf(chunk) {
  if (typeof chunk.model === 'string') yield { model: chunk.model };
  const progress = chunk.prompt_progress;
  if (progress) yield { reading: { done: Number(progress.processed), total: Number(progress.total) } };
  const choice = chunk.choices?.[0];
  const delta = choice?.delta;
  if (typeof delta?.reasoning_content === 'string') yield { reasoning: delta.reasoning_content };
  if (typeof delta?.content === 'string') yield { content: delta.content };
  if (choice?.finish_reason) yield { finish: String(choice.finish_reason) };
  if (chunk.usage) yield { usage: chunk.usage };
  if (chunk.timings) yield { timings: chunk.timings };
}

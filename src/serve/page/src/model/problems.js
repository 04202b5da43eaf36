// What can go wrong between this page and its server, as kinds that the words have a sentence for.
//
//   gone       no connection          loading   the model is being loaded      locked   an API key is missing or wrong
//   long       too many tokens        busy      too many requests wait         refused  another 4xx
//   broken     5xx                    lost      the stream ended too early     missing  the model is not there

/** Something the person has to know. `detail` is the server's own sentence. */
export class Problem extends Error {
  constructor(kind, { detail = '', seconds = null, progress = null } = {}) {
    super(detail || kind);
    this.kind = kind;
    this.detail = detail;
    this.seconds = seconds;
    this.progress = progress;
  }

  /** Returns it as plain data, to store with a message. */
  toRecord() {
    return { kind: this.kind, detail: this.detail, seconds: this.seconds };
  }
}

const LONGEST_DETAIL = 600;

/** Returns the problem that an error status and its body are. */
export function fromStatus(status, headers, body) {
  const error = body?.error ?? body ?? {};
  const detail = String(error.message ?? (typeof error === 'string' ? error : '')).slice(0, LONGEST_DETAIL);
  const seconds = secondsOf(headers?.get('retry-after'));
  const progress = progressOf(body);
  return new Problem(kindOf(status, error), { detail, seconds, progress });
}

/** Returns the problem that an error inside a stream is. */
export function fromEvent(error) {
  return fromStatus(Number(error?.code) || Number(error?.status) || 500, null, { error });
}

function kindOf(status, error) {
  const names = `${error.code ?? ''} ${error.type ?? ''}`;
  if (status === 401 || status === 403) return 'locked';
  if (/context_length_exceeded|exceed_context_size/.test(names)) return 'long';
  if (status === 404) return 'missing';
  if (status === 429) return 'busy';
  // What ends again and again is not waited for.
  if (status === 503 && error.state !== 'crash_loop') return 'loading';
  return status >= 500 ? 'broken' : 'refused';
}

function secondsOf(text) {
  const seconds = Number.parseInt(text ?? '', 10);
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), 3600) : null;
}

/** Returns how much of the model is loaded, from 0 to 1, if the body says so. */
export function progressOf(body) {
  const progress = Number(body?.progress ?? body?.error?.progress ?? Number.NaN);
  return progress >= 0 && progress <= 1 ? progress : null;
}

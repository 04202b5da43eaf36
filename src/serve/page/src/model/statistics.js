// How much an answer read and wrote, and how fast.
//
// The server's `timings` are measured where the work is done. Without them, `usage` counts the tokens, and the times
// are those at which the texts arrived here.

/** Collects the statistics of one answer. */
export class Stopwatch {
  constructor(now = () => performance.now()) {
    this.now = now;
    this.started = now();
    this.first = null;
    this.last = null;
    this.usage = null;
    this.timings = null;
  }

  /** Text has arrived. */
  text() {
    this.last = this.now();
    this.first ??= this.last;
  }

  /** Returns `{ read, readMs, cached, written, writtenMs }`, with `null` for what is not known; `null` without any. */
  result() {
    const { usage, timings } = this;
    if (timings) {
      return {
        read: number(timings.prompt_n),
        readMs: number(timings.prompt_ms),
        cached: number(timings.cache_n ?? usage?.prompt_tokens_details?.cached_tokens),
        written: number(timings.predicted_n),
        writtenMs: number(timings.predicted_ms),
      };
    }
    if (!usage) return null;
    const cached = number(usage.prompt_tokens_details?.cached_tokens);
    const prompt = number(usage.prompt_tokens);
    const written = number(usage.completion_tokens);
    // From the first token to the last it is one token less than there are.
    const whole = written > 1 ? written / (written - 1) : 1;
    return {
      read: prompt === null ? null : prompt - (cached ?? 0),
      readMs: this.first === null ? null : this.first - this.started,
      cached,
      written,
      writtenMs: this.first === null ? null : (this.last - this.first) * whole,
    };
  }
}

function number(value) {
  return Number.isFinite(value) ? value : null;
}

/** Returns tokens a second; `null` if there were too few to say. */
export function speed(tokens, milliseconds) {
  return tokens > 1 && milliseconds > 0 ? (tokens * 1000) / milliseconds : null;
}

/** Returns the tokens that the context holds after an answer. */
export function held(statistics) {
  if (!statistics || statistics.read === null) return null;
  return statistics.read + (statistics.cached ?? 0) + (statistics.written ?? 0);
}

// Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html
//
// `EventSource` cannot send a body, so the stream of a POST is read by hand. Only `data` matters here.

/** Yields the data of each event in a stream of bytes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      // A carriage return at the end may be half of a line's end.
      const text = rest + value;
      const lines = text.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === '') {
          if (data.length) yield data.join('\n');
          data = [];
        } else if (line.startsWith('data:')) {
          data.push(line.slice(line[5] === ' ' ? 6 : 5));
        }
      }
    }
    // The specification drops an event without an empty line after it; `[DONE]` may end like that.
    if (rest.startsWith('data:')) data.push(rest.slice(5).trim());
    if (data.length) yield data.join('\n');
  } finally {
    reader.cancel().catch(() => {});
  }
}

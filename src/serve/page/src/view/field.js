// Parts of forms.

import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { html } from './html.js';

function fit(area) {
  area.style.height = 'auto';
  // Two pixels for the border.
  area.style.height = `${area.scrollHeight + 2}px`;
}

/** A text area as high as its text, up to what the style sheet allows. */
export function GrowingArea({ areaRef, value, ...rest }) {
  const own = useRef();
  const area = areaRef ?? own;
  useLayoutEffect(() => fit(area.current), [value]);
  useEffect(() => {
    // Another width breaks the lines elsewhere; in a dialog that is about to open there was none at all.
    let width = 0;
    const observer = new ResizeObserver(([{ target, contentRect }]) => {
      // In the next frame: a size that changes while sizes are reported counts as a loop.
      if (contentRect.width !== width) requestAnimationFrame(() => fit(target));
      width = contentRect.width;
    });
    observer.observe(area.current);
    return () => observer.disconnect();
  }, []);
  return html`<textarea ref=${area} value=${value} rows="1" ...${rest}></textarea>`;
}

/**
 * A text whose value is taken while it is typed, if `check(text)` returns no complaint. What is typed stays as it is,
 * right or wrong: a number on its way to `0.5` is `0.` for a moment.
 */
export function CheckedField({ id, label, hint, value, check, take, area, ...rest }) {
  const [text, setText] = useState(value);
  const typed = useRef(value);
  // A value that changed elsewhere: reset, or another conversation.
  useEffect(() => {
    if (value === typed.current) return;
    typed.current = value;
    setText(value);
  }, [value]);
  const complaint = check(text);
  const onInput = (event) => {
    const now = event.currentTarget.value;
    setText(now);
    if (check(now)) return;
    typed.current = now;
    take(now);
  };
  const described = `${id}-hint${complaint ? ` ${id}-complaint` : ''}`;
  const common = {
    id,
    onInput,
    'aria-describedby': described,
    'aria-invalid': complaint ? 'true' : undefined,
    ...rest,
  };
  return html`<div class="field ${area ? 'wide' : ''}">
    <label for=${id}>${label}</label>
    ${area ? html`<${GrowingArea} value=${text} ...${common} />` : html`<input value=${text} ...${common} />`}
    <p class="hint" id="${id}-hint">${hint}</p>
    ${complaint && html`<p class="complaint" id="${id}-complaint">${complaint}</p>`}
  </div>`;
}

/** One of several values. `options` are [value, label]. */
export function Choice({ id, label, value, options, take }) {
  return html`<div class="field">
    <label for=${id}>${label}</label>
    <select id=${id} value=${value} onChange=${(event) => take(event.currentTarget.value)}>
      ${options.map(([name, text]) => {
        return html`<option key=${name} value=${name} selected=${name === value}>${text}</option>`;
      })}
    </select>
  </div>`;
}

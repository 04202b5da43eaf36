// A text of the model's, typeset.

import { useLayoutEffect, useRef } from 'preact/hooks';
import { copy } from '../text/clipboard.js';
import { Rendering } from '../text/markdown.js';
import { t } from '../words/index.js';
import { change } from '../model/state.js';
import { html, memo } from './html.js';
import { sayElement } from './speaker.js';

const COPIED_MS = 2000;

/** Copies a text, and says on the button that it is done. */
export async function copyFrom(button, text) {
  if (!(await copy(text))) return change({ notice: { text: t('copy_failed') } });
  button.dataset.done = '';
  const label = button.getAttribute('aria-label');
  button.setAttribute('aria-label', t('copied'));
  setTimeout(() => {
    delete button.dataset.done;
    button.setAttribute('aria-label', label);
  }, COPIED_MS);
}

/** Gives code its language and a button to copy it; makes what is too wide reachable by keyboard. */
function decorate(element) {
  for (const code of element.querySelectorAll('.code')) {
    const bar = document.createElement('div');
    bar.className = 'bar';
    const language = document.createElement('span');
    language.textContent = code.dataset.language ?? '';
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'plain copy';
    button.textContent = t('copy');
    button.dataset.copied = t('copied');
    button.setAttribute('aria-label', t('copy_code'));
    const pre = code.querySelector('pre');
    button.addEventListener('click', () => copyFrom(button, pre.textContent));
    bar.append(language, button);
    code.prepend(bar);
    pre.tabIndex = 0;
  }
  for (const wide of element.querySelectorAll('.scroll')) wide.tabIndex = 0;
}

/** `live` says whether it is being written: then its finished blocks are read out by screen readers. */
export const Markdown = memo(function Markdown({ text, live, language }) {
  const parent = useRef();
  const rendering = useRef();
  const said = useRef(null);
  useLayoutEffect(() => {
    rendering.current ??= new Rendering(parent.current, decorate);
    rendering.current.update(text);
    const blocks = parent.current.children;
    // What was there before is not news.
    if (live) said.current ??= Math.max(0, blocks.length - 1);
    if (said.current === null) return;
    const complete = live ? blocks.length - 1 : blocks.length;
    while (said.current < complete) sayElement(blocks[said.current++]);
    if (!live) said.current = null;
  });
  return html`<div class="markdown" ref=${parent} lang=${language}></div>`;
});

// The box to write in, and the button that sends or stops.

import { useRef, useState } from 'preact/hooks';
import { send, stop } from '../model/answers.js';
import { change, currentConversation, messagesOf, state } from '../model/state.js';
import { held } from '../model/statistics.js';
import { path } from '../store/tree.js';
import { number, t } from '../words/index.js';
import { GrowingArea } from './field.js';
import { focusBox } from './focus.js';
import { html } from './html.js';
import { Icon } from './icons.js';

/** Whether a key belongs to an input method: Enter then chooses a word. Safari tells it only by the old code. */
export function composing(event) {
  return event.isComposing || event.keyCode === 229;
}

function editLast() {
  const conversation = currentConversation();
  if (!conversation || state.running.has(conversation.id)) return;
  const last = path(conversation, messagesOf(conversation.id)).findLast(({ role }) => role === 'user');
  if (last) change({ editing: last.id });
}

function ContextUsed() {
  const conversation = currentConversation();
  const last = conversation && path(conversation, messagesOf(conversation.id)).at(-1);
  const used = held(last?.statistics);
  if (used === null || !state.server.context) return html`<p class="hint">${t('keys_hint')}</p>`;
  return html`<p class="hint">${t('context_used', { n: number(used), of: number(state.server.context) })}</p>`;
}

/** The box. */
export function Composer() {
  // What was begun in each conversation waits there.
  const drafts = useRef(new Map());
  const [, render] = useState(0);
  const area = useRef();
  const text = drafts.current.get(state.current) ?? '';
  const setText = (now) => {
    drafts.current.set(state.current, now);
    render((n) => n + 1);
  };
  const busy = state.running.has(state.current);
  const submit = (event) => {
    event?.preventDefault();
    if (busy || !text.trim()) return;
    setText('');
    send(text.trim());
  };
  const halt = () => {
    stop();
    focusBox();
  };
  const onKeyDown = (event) => {
    if (composing(event)) return;
    if (event.key === 'Enter' && !event.shiftKey) {
      event.preventDefault();
      submit();
    }
    if (event.key === 'ArrowUp' && !text) editLast();
  };
  return html`<form class="composer" onSubmit=${submit}>
    <div class="frame">
      <${GrowingArea} id="box" areaRef=${area} value=${text} placeholder=${t('write_here')}
        aria-label=${t('write_here')}
        onInput=${(event) => setText(event.currentTarget.value)} onKeyDown=${onKeyDown} enterkeyhint="send" />
      ${
        busy
          ? html`<button key="stop" type="button" class="round" aria-label=${t('stop')} title=${t('stop')}
            onClick=${halt}><${Icon} name="stop" /></button>`
          : html`<button key="send" type="submit" class="round" aria-label=${t('send')} title=${t('send')}
            disabled=${!text.trim()}><${Icon} name="send" /></button>`
      }
    </div>
    <${ContextUsed} />
  </form>`;
}

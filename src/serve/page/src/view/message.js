// One message: its text, what happened to it, and what can be done with it.

import { useEffect, useRef, useState } from 'preact/hooks';
import { continueAnswer, edit, regenerate } from '../model/answers.js';
import { choose } from '../model/conversations.js';
import { change } from '../model/state.js';
import { speed } from '../model/statistics.js';
import { languageOf } from '../text/language.js';
import { number, percent, seconds, t } from '../words/index.js';
import { composing } from './composer.js';
import { GrowingArea } from './field.js';
import { focusBox } from './focus.js';
import { html, memo } from './html.js';
import { Icon, IconButton } from './icons.js';
import { Markdown, copyFrom } from './markdown.js';

function Editor({ message }) {
  const [text, setText] = useState(message.content);
  const area = useRef();
  useEffect(() => {
    area.current.focus();
    area.current.setSelectionRange(text.length, text.length);
  }, []);
  const leave = () => {
    change({ editing: null });
    focusBox();
  };
  const submit = (event) => {
    event.preventDefault();
    if (!text.trim()) return;
    edit(message, text.trim());
    focusBox();
  };
  const question = message.role === 'user';
  const onKeyDown = (event) => {
    if (composing(event)) return;
    // An answer has many lines; only a question is sent by Enter.
    if (event.key === 'Enter' && (question ? !event.shiftKey : event.ctrlKey || event.metaKey)) submit(event);
    if (event.key === 'Escape') {
      event.preventDefault();
      leave();
    }
  };
  return html`<form class="editor" onSubmit=${submit}>
    <${GrowingArea} areaRef=${area} value=${text} aria-label=${t(question ? 'edit_question' : 'edit_answer')}
      onInput=${(event) => setText(event.currentTarget.value)} onKeyDown=${onKeyDown} />
    <div class="row end">
      <span class="hint">${t(question ? 'edit_question' : 'edit_answer')}</span>
      <button type="button" onClick=${leave}>${t('cancel')}</button>
      <button type="submit" class="main" disabled=${!text.trim()}>${t(question ? 'save_and_send' : 'save')}</button>
    </div>
  </form>`;
}

function Alternatives({ message, at, of, busy }) {
  if (of < 2) return null;
  return html`<span class="alternatives">
    <${IconButton} icon="left" label=${t('previous')} disabled=${at === 1 || busy}
      onClick=${() => choose(message, -1)} />
    <span role="img" aria-label=${t('alternative', { at: number(at), of: number(of) })}>
      ${number(at)}/${number(of)}
    </span>
    <${IconButton} icon="right" label=${t('next')} disabled=${at === of || busy} onClick=${() => choose(message, 1)} />
  </span>`;
}

function CopyButton({ text }) {
  const label = t('copy');
  const onClick = (event) => copyFrom(event.currentTarget, text);
  return html`<button type="button" class="plain copy" aria-label=${label} title=${label} onClick=${onClick}>
    <${Icon} name="copy" /><${Icon} name="check" />
  </button>`;
}

// A shorter time would be shown as none.
const SHORTEST_MS = 50;

function Statistics({ of }) {
  if (!of) return null;
  const rate = speed(of.written, of.writtenMs);
  const timed = (key, n, ms) => {
    const shown = ms >= SHORTEST_MS;
    return t(shown ? `${key}_in` : key, { n: number(n), time: shown && seconds(ms), count: n });
  };
  const parts = [
    rate !== null && t('tokens_per_second', { n: number(rate, rate < 10 ? 1 : 0) }),
    of.written !== null && timed('written', of.written, of.writtenMs),
    of.read !== null && timed('read', of.read, of.readMs),
    of.cached > 0 && t('cached', { n: number(of.cached) }),
  ].filter(Boolean);
  return html`<p class="statistics">${parts.map((part) => html`<span>${part}</span>`)}</p>`;
}

/** The sentence for a problem. */
function sentence({ kind, seconds: wait }) {
  if (kind === 'busy' && !wait) return t('problem_busy_soon');
  return t(`problem_${kind}`, { seconds: number(wait ?? 0) });
}

/** Returns a handler. Its button is gone while the answer is written, so the focus moves on. */
const again = (message) => () => {
  regenerate(message);
  focusBox();
};

/** Returns a handler, as `again` does. */
const goOn = (message) => () => {
  continueAnswer(message);
  focusBox();
};

function ProblemNote({ problem, message }) {
  const { kind, detail } = problem;
  const enterKey = () => change({ dialog: { name: 'key' } });
  return html`<div class="problem" role="alert">
    <p>${sentence(problem)}</p>
    ${detail && html`<p class="detail">${t('server_says', { detail })}</p>`}
    <div class="row">
      ${kind === 'locked' && html`<button type="button" onClick=${enterKey}>${t('enter_key')}</button>`}
      <button type="button" onClick=${again(message)}>${t('try_again')}</button>
    </div>
  </div>`;
}

/** How far something is, from 0 to 1; `null` if that is not known. */
function Part({ label, share }) {
  return html`<p class="progress">
    <span>${label}</span>
    <progress value=${share ?? undefined} aria-label=${label} />
  </p>`;
}

/** What is being done for an answer that has no text yet. */
function Progress({ running }) {
  const { phase, reading, progress } = running;
  if (phase === 'loading') {
    const label = progress === null ? t('loading') : t('loading_part', { percent: percent(progress) });
    return html`<${Part} label=${label} share=${progress} />`;
  }
  if (phase === 'reading' && reading?.total > 0) {
    const { done, total } = reading;
    const label = t('reading', { done: number(done), total: number(total) });
    return html`<${Part} label=${label} share=${done / total} />`;
  }
  return html`<p class="progress">
    <span class="dots" role="img" aria-label=${t('waiting')}><i></i><i></i><i></i></span>
  </p>`;
}

function Reasoning({ text, now }) {
  // Open while it is all there is, unless the person decided otherwise.
  const [wanted, setWanted] = useState(null);
  const open = wanted ?? now;
  const toggle = (event) => {
    event.preventDefault();
    setWanted(!open);
  };
  return html`<details class="reasoning" open=${open}>
    <summary onClick=${toggle}>${t(now ? 'reasoning_now' : 'reasoning')}</summary>
    <div lang=${languageOf(text)}>${text.trim()}</div>
  </details>`;
}

/** JSON that was asked for, as code. */
function asCode(text) {
  const fence = '`'.repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map((run) => run.length + 1)));
  return `${fence}json\n${text}\n${fence}`;
}

function Answer({ message, running, busy, at, of }) {
  const { content, reasoning, problem, finish } = message;
  const live = running !== null;
  const cut = !live && finish !== 'stop' && finish !== 'failed' && (content || reasoning);
  const nothing = !content && !(reasoning && running?.phase === 'reasoning');
  return html`
    ${reasoning && html`<${Reasoning} text=${reasoning} now=${live && !content} />`}
    <div class=${live && content ? 'writing' : ''}>
      <${Markdown} text=${message.json ? asCode(content) : content} live=${live} language=${languageOf(content)} />
    </div>
    ${live && nothing && html`<${Progress} running=${running} />`}
    ${!live && problem && html`<${ProblemNote} problem=${problem} message=${message} />`}
    ${cut && !problem && html`<p class="note">${t(finish === 'length' ? 'length' : 'stopped')}</p>`}
    ${
      !live &&
      (content || reasoning || of > 1 || !problem) &&
      html`<div class="tools">
      <${Alternatives} message=${message} at=${at} of=${of} busy=${busy} />
      ${content && html`<${CopyButton} text=${content} />`}
      ${
        content &&
        html`<${IconButton} icon="edit" label=${t('edit')} disabled=${busy}
        onClick=${() => change({ editing: message.id })} />`
      }
      <${IconButton} icon="redo" label=${t('regenerate')} disabled=${busy} onClick=${again(message)} />
      ${
        cut &&
        html`<button type="button" class="plain" disabled=${busy} onClick=${goOn(message)}>
        <${Icon} name="more" />${t('continue')}
      </button>`
      }
      <${Statistics} of=${message.statistics} />
    </div>`
    }
  `;
}

function Question({ message, busy, at, of }) {
  return html`
    <div class="bubble" lang=${languageOf(message.content)}>${message.content}</div>
    <div class="tools">
      <${Alternatives} message=${message} at=${at} of=${of} busy=${busy} />
      <${CopyButton} text=${message.content} />
      <${IconButton} icon="edit" label=${t('edit')} disabled=${busy} onClick=${() => change({ editing: message.id })} />
    </div>
  `;
}

/**
 * A message. `running` is what is being done for it, or `null`; `busy` whether anything is being written in the
 * conversation; `at` and `of` its place among its alternatives; `language` only has it rendered again when the words
 * change.
 */
export const Message = memo(function Message({ message, running, busy, at, of, editing }) {
  const question = message.role === 'user';
  const name = question ? t('you') : message.model || t('model');
  const Body = question ? Question : Answer;
  return html`<article class="message ${question ? 'question' : 'answer'}" aria-label=${name}>
    <h2 class="hidden">${name}</h2>
    ${
      editing
        ? html`<${Editor} message=${message} />`
        : html`<${Body} message=${message} running=${running} busy=${busy} at=${at} of=${of} />`
    }
  </article>`;
});

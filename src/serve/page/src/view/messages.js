// The messages of the conversation that is shown.

import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { currentConversation, messagesOf, state } from '../model/state.js';
import { path, place } from '../store/tree.js';
import { t } from '../words/index.js';
import { html } from './html.js';
import { IconButton } from './icons.js';
import { Message } from './message.js';
import { say } from './speaker.js';

// Closer to the end than this counts as being there.
const NEAR_PIXELS = 80;

/** Keeps the end in view while the content grows, unless the person has scrolled away. Returns [far away, go there]. */
function useEnd(scroller, content, conversation, count) {
  const stays = useRef(true);
  const [away, setAway] = useState(false);
  const go = () => {
    stays.current = true;
    scroller.current.scrollTop = scroller.current.scrollHeight;
  };
  useEffect(() => {
    const element = scroller.current;
    let last = 0;
    const onScroll = () => {
      const top = element.scrollTop;
      const rest = element.scrollHeight - top - element.clientHeight;
      // Only a person scrolls up. Far from the end is also where `go` led, if much has arrived since.
      if (rest < NEAR_PIXELS) stays.current = true;
      else if (top < last) stays.current = false;
      last = top;
      setAway(rest > 3 * NEAR_PIXELS);
    };
    const observer = new ResizeObserver(() => stays.current && go());
    observer.observe(content.current);
    observer.observe(element);
    element.addEventListener('scroll', onScroll, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener('scroll', onScroll);
    };
  }, []);
  useLayoutEffect(go, [conversation, count]);
  return [away, go];
}

/** Says when writing begins and ends in the conversation that is shown. */
function useAnnouncements(conversation, running) {
  const before = useRef({ conversation: null, signal: null });
  useEffect(() => {
    const { signal } = before.current.conversation === conversation ? before.current : { signal: null };
    if (running && !signal) say(t('say_writing'));
    if (!running && signal) say(t(signal.aborted ? 'say_stopped' : 'say_done'));
    before.current = { conversation, signal: running?.controller.signal ?? null };
  }, [conversation, running?.controller]);
}

/** The messages, or a welcome. */
export function Messages() {
  const scroller = useRef();
  const content = useRef();
  const conversation = currentConversation();
  const messages = messagesOf(state.current);
  const shown = conversation ? path(conversation, messages) : [];
  const running = state.running.get(state.current) ?? null;
  const [away, go] = useEnd(scroller, content, state.current, shown.length);
  useAnnouncements(state.current, running);
  return html`<main class="messages" ref=${scroller} aria-label=${t('message_list')}>
    <div class="column" ref=${content}>
      ${
        !shown.length &&
        html`<div class="welcome">
        <h1>${t('welcome')}</h1>
        <p>${t('welcome_note')}</p>
      </div>`
      }
      ${shown.map((message) => {
        const { at, of } = place(messages, message);
        const own = running?.message === message.id ? running : null;
        return html`<${Message} key=${message.id} message=${message} running=${own} busy=${running !== null}
          at=${at} of=${of}
          editing=${state.editing === message.id} language=${document.documentElement.lang} />`;
      })}
    </div>
    ${away && html`<${IconButton} icon="down" class="plain to-end" label=${t('to_end')} onClick=${go} />`}
  </main>`;
}

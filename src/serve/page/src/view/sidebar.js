// The list of conversations, with search, export and import.

import { exportToFile, importFile, inOrder, open, search } from '../model/conversations.js';
import { change, state } from '../model/state.js';
import { save } from '../store/preferences.js';
import { number, t } from '../words/index.js';
import { focusBox } from './focus.js';
import { html } from './html.js';
import { Icon, IconButton } from './icons.js';

const NARROW = matchMedia('(max-width: 48rem)');
const DAY_MS = 86400000;

/** Shows or hides the list: over the page on narrow windows, beside it on wide ones. */
export function toggleList(shown) {
  if (NARROW.matches) return change({ drawer: shown ?? !state.drawer });
  const sidebar = shown ?? !state.sidebar;
  save('sidebar', sidebar);
  change({ sidebar });
}

/** Returns conversations in groups by when they were last used: [[name, conversations]]. */
function byAge(conversations) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const groups = [
    ['today', midnight],
    ['yesterday', midnight - DAY_MS],
    ['this_week', midnight - 7 * DAY_MS],
    ['older', -Infinity],
  ];
  const found = groups.map(([name]) => [name, []]);
  for (const conversation of conversations) {
    found[groups.findIndex(([, from]) => conversation.updated >= from)][1].push(conversation);
  }
  return found.filter(([, members]) => members.length);
}

function Item({ conversation, excerpt }) {
  const { id, title } = conversation;
  const current = state.current === id;
  const dialog = (name) => () => change({ dialog: { name, id } });
  return html`<li class=${current ? 'current' : ''}>
    <button type="button" class="open" aria-current=${current ? 'true' : undefined} title=${title}
      onClick=${() => open(id)}>
      <span class="title">${title || t('untitled')}</span>
      ${excerpt && html`<span class="excerpt">${excerpt}</span>`}
      ${state.running.has(id) && html`<span class="dot" role="img" aria-label=${t('say_writing')}></span>`}
    </button>
    <span class="actions">
      <${IconButton} icon="edit" label=${t('rename_of', { title })} onClick=${dialog('rename')} />
      <${IconButton} icon="save" label=${t('export_of', { title })} onClick=${() => exportToFile(id)} />
      <${IconButton} icon="bin" label=${t('delete_of', { title })} onClick=${dialog('delete')} />
    </span>
  </li>`;
}

function Found() {
  const { found, query, conversations } = state;
  if (!found) return null;
  const line = found.length
    ? t('found', { n: number(found.length), of: number(conversations.size), count: conversations.size })
    : t('nothing_found', { query });
  return html`<div>
    <p class="hint" role="status">${line}</p>
    <ul>
      ${found.map(({ id, excerpt }) => {
        const conversation = conversations.get(id);
        return conversation && html`<${Item} key=${id} conversation=${conversation} excerpt=${excerpt} />`;
      })}
    </ul>
  </div>`;
}

function All() {
  const all = inOrder();
  if (!all.length) return html`<p class="hint">${state.ready ? t('no_conversations') : ''}</p>`;
  return byAge(all).map(
    ([name, members]) => html`<section key=${name}>
    <h3>${t(name)}</h3>
    <ul>
      ${members.map((each) => html`<${Item} key=${each.id} conversation=${each} />`)}
    </ul>
  </section>`,
  );
}

/** The list. */
export function Sidebar() {
  const take = async (event) => {
    const input = event.currentTarget;
    if (input.files.length) await importFile(input.files[0]);
    // The same file can be chosen again.
    input.value = '';
  };
  const startNew = async () => {
    await open(null);
    focusBox();
  };
  return html`<nav class="sidebar" id="list" aria-label=${t('conversations')}>
    <div class="head">
      <span class="name" aria-hidden="true">nibble</span>
      <${IconButton} icon="menu" label=${t('close_list')} aria-controls="list" aria-expanded="true"
        onClick=${() => toggleList(false)} />
    </div>
    <button type="button" class="new" onClick=${startNew}><${Icon} name="plus" />${t('new_conversation')}</button>
    <div class="search" role="search">
      <${Icon} name="search" />
      <input id="search" type="search" aria-label=${t('search_conversations')} placeholder=${t('search')}
        value=${state.query} autocomplete="off" onInput=${(event) => search(event.currentTarget.value)} />
    </div>
    <div class="list">${state.query.trim() ? html`<${Found} />` : html`<${All} />`}</div>
    <div class="foot">
      <button type="button" class="plain" disabled=${!state.conversations.size} onClick=${() => exportToFile(null)}>
        <${Icon} name="save" />${t('export_all')}
      </button>
      <button type="button" class="plain" onClick=${() => document.getElementById('import').click()}>
        <${Icon} name="load" />${t('import')}
      </button>
      <input id="import" type="file" accept=".json,application/json" hidden onChange=${take} />
    </div>
  </nav>`;
}

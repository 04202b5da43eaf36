// The whole page: list, header, messages, box, and what lies over them.

import { useEffect, useState } from 'preact/hooks';
import { setSettings } from '../model/conversations.js';
import { change, currentConversation, currentSettings, onChange, state } from '../model/state.js';
import { percent, t } from '../words/index.js';
import { Composer } from './composer.js';
import { Dialogs } from './dialogs.js';
import { html } from './html.js';
import { IconButton } from './icons.js';
import { Messages } from './messages.js';
import { Sidebar, toggleList } from './sidebar.js';

function ModelName() {
  const { models } = state.server;
  if (models.length < 2) return html`<span class="model" title=${models[0]}>${models[0] ?? ''}</span>`;
  const { model } = currentSettings();
  const chosen = models.includes(model) ? model : models[0];
  return html`<select class="model" aria-label=${t('model')} value=${chosen}
    onChange=${(event) => setSettings({ model: event.currentTarget.value })}>
    ${models.map((id) => html`<option key=${id} value=${id} selected=${id === chosen}>${id}</option>`)}
  </select>`;
}

/** What is wrong with the server, if something is. */
function ServerNote() {
  const { status, progress } = state.server;
  if (status === 'gone') return html`<p class="banner bad" role="alert">${t('problem_gone')}</p>`;
  if (status !== 'loading') return null;
  const label = progress === null ? t('loading') : t('loading_part', { percent: percent(progress) });
  return html`<p class="banner">
    <span>${label}</span>
    <progress value=${progress ?? undefined} aria-label=${label} />
  </p>`;
}

function Notice() {
  if (!state.notice) return null;
  return html`<div class="notice" role="alert">
    <p>${state.notice.text}</p>
    <${IconButton} icon="close" label=${t('dismiss')} onClick=${() => change({ notice: null })} />
  </div>`;
}

function Header() {
  const title = currentConversation()?.title ?? '';
  useEffect(() => {
    document.title = title ? `${title} · nibble` : 'nibble';
  }, [title]);
  return html`<header class="top">
    <${IconButton} icon="menu" class="plain open-list" label=${t('open_list')} aria-controls="list"
      aria-expanded="false" onClick=${() => toggleList(true)} />
    <${ModelName} />
    <span class="title" aria-hidden="true">${title}</span>
    <${IconButton} icon="settings" label=${t('settings')} onClick=${() => change({ dialog: { name: 'settings' } })} />
  </header>`;
}

/** The page. */
export function App() {
  const [, render] = useState(0);
  useEffect(() => onChange(() => render((n) => n + 1)), []);
  const classes = `app ${state.sidebar ? 'with-sidebar' : ''} ${state.drawer ? 'with-drawer' : ''}`;
  return html`<div class=${classes}>
    <${Sidebar} />
    <div class="shade" onClick=${() => change({ drawer: false })}></div>
    <div class="page">
      <${Header} />
      <${ServerNote} />
      <${Messages} />
      <${Composer} />
    </div>
    <${Notice} />
    <${Dialogs} />
    <div id="speaker" class="hidden" aria-live="polite"></div>
  </div>`;
}

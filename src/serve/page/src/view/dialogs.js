// The small dialogs: rename, delete, API key, keyboard shortcuts.

import { useState } from 'preact/hooks';
import { hasKey, remove, rename, setKey } from '../model/conversations.js';
import { connect } from '../model/connection.js';
import { state } from '../model/state.js';
import { t } from '../words/index.js';
import { Dialog, close } from './dialog.js';
import { focusBox } from './focus.js';
import { html } from './html.js';
import { SHORTCUTS } from './keys.js';
import { Settings } from './settings.js';

/** Returns a handler that keeps the browser from sending the form anywhere. */
function submitting(action) {
  return (event) => {
    event.preventDefault();
    action(new FormData(event.currentTarget));
  };
}

function Rename({ id }) {
  const conversation = state.conversations.get(id);
  const onSubmit = submitting(async (form) => {
    await rename(id, form.get('title'));
    close();
  });
  return html`<${Dialog} title=${t('rename')}>
    <form onSubmit=${onSubmit}>
      <div class="field wide">
        <label for="rename-title">${t('title')}</label>
        <input id="rename-title" name="title" defaultValue=${conversation.title} maxlength="200" autocomplete="off"
          autofocus />
      </div>
      <div class="row end">
        <button type="button" onClick=${close}>${t('cancel')}</button>
        <button type="submit" class="main">${t('save')}</button>
      </div>
    </form>
  <//>`;
}

function Delete({ id }) {
  const { title } = state.conversations.get(id);
  const onSubmit = submitting(async () => {
    close();
    await remove(id);
    focusBox();
  });
  return html`<${Dialog} title=${t('delete')}>
    <form onSubmit=${onSubmit}>
      <p>${t('delete_question', { title })}</p>
      <div class="row end">
        <button type="button" onClick=${close} autofocus>${t('cancel')}</button>
        <button type="submit" class="danger">${t('delete')}</button>
      </div>
    </form>
  <//>`;
}

function Key() {
  const [wrong, setWrong] = useState(false);
  const take = async (key) => {
    setKey(key);
    if ((await connect()) === 'locked') setWrong(true);
    else close();
  };
  const onSubmit = submitting((form) => take(form.get('key')));
  return html`<${Dialog} title=${t('key_title')}>
    <form onSubmit=${onSubmit}>
      <p>${t('key_text')}</p>
      <div class="field wide">
        <label for="key">${t('api_key')}</label>
        <input id="key" name="key" type="password" autofocus autocomplete="off" required
          aria-invalid=${wrong ? 'true' : undefined} aria-describedby="key-complaint" />
        <p class="complaint" id="key-complaint" role="alert">${wrong ? t('key_wrong') : ''}</p>
      </div>
      <div class="row end">
        ${hasKey() && html`<button type="button" onClick=${() => take('')}>${t('forget_key')}</button>`}
        <button type="submit" class="main">${t('use_key')}</button>
      </div>
    </form>
  <//>`;
}

function Shortcuts() {
  return html`<${Dialog} title=${t('shortcuts')}>
    <dl class="keys">
      ${SHORTCUTS.map(
        ({ keys, name }) => html`<div key=${name}>
        <dt>${t(name)}</dt>
        <dd>${keys().map((key) => html`<kbd>${key}</kbd>`)}</dd>
      </div>`,
      )}
    </dl>
  <//>`;
}

const DIALOGS = { rename: Rename, delete: Delete, key: Key, shortcuts: Shortcuts, settings: Settings };

/** The dialog that is open, if one is. */
export function Dialogs() {
  if (!state.dialog) return null;
  const { name, ...rest } = state.dialog;
  // Another window may have deleted what this one is about.
  if (rest.id && !state.conversations.has(rest.id)) return null;
  return html`<${DIALOGS[name]} key=${name} ...${rest} />`;
}

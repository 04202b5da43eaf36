// Starts the page: words and theme first, so that nothing flickers, then what the browser keeps, then the server.

import { render } from 'preact';
import { openAddress } from './model/conversations.js';
import { connect } from './model/connection.js';
import { readAll } from './model/keep.js';
import { change, state } from './model/state.js';
import { App } from './view/app.js';
import { focusBox } from './view/focus.js';
import { html } from './view/html.js';
import { listen } from './view/keys.js';
import { applyTheme } from './view/settings.js';
import { speak, t } from './words/index.js';

function complain(error) {
  change({ notice: { text: t('unexpected', { detail: error?.message ?? String(error) }) } });
}

async function start() {
  speak(state.language);
  applyTheme(state.theme);
  // Without an error it is a remark of the browser's, such as a size that it will report in the next frame.
  addEventListener('error', (event) => event.error && complain(event.error));
  addEventListener('unhandledrejection', (event) => complain(event.reason));
  listen();
  await readAll();
  await openAddress();
  render(html`<${App} />`, document.getElementById('app'));
  focusBox();
  addEventListener('popstate', openAddress);
  // Someone who comes back to the window wants to know at once whether the server is back, too.
  addEventListener('focus', () => state.server.status === 'gone' && connect());
  await connect();
}

start();

// A window over the page. The browser's own <dialog> keeps the focus inside, closes on Escape, and gives the focus
// back.

import { useEffect, useRef } from 'preact/hooks';
import { change } from '../model/state.js';
import { t } from '../words/index.js';
import { html } from './html.js';
import { IconButton } from './icons.js';

/** Closes what is open. */
export function close() {
  change({ dialog: null });
}

/** `kind` is a class for its size: `side`, or none. */
export function Dialog({ title, kind = '', children }) {
  const dialog = useRef();
  useEffect(() => {
    const element = dialog.current;
    element.showModal();
    return () => element.close();
  }, []);
  const onClick = (event) => {
    // The element itself is hit only outside of its contents: on the backdrop.
    if (event.target === dialog.current) close();
  };
  return html`<dialog class=${kind} ref=${dialog} aria-labelledby="dialog-title" onClick=${onClick} onClose=${close}>
    <div class="sheet">
      <header>
        <h2 id="dialog-title">${title}</h2>
        <${IconButton} icon="close" label=${t('close')} onClick=${close} />
      </header>
      ${children}
    </div>
  </dialog>`;
}

// Keyboard shortcuts, those that work wherever the focus is. Enter and the arrow belong to the message box.

import { open } from '../model/conversations.js';
import { stop } from '../model/answers.js';
import { change, state } from '../model/state.js';
import { focus } from './focus.js';
import { toggleList } from './sidebar.js';

const apple = /Mac|iPhone|iPad/.test(navigator.platform);
const control = apple ? '⌘' : 'Ctrl';
const shift = apple ? '⇧' : 'Shift';

/** What the list of shortcuts shows: keys, and the name of the words that say what they do. */
export const SHORTCUTS = [
  { name: 'key_send', keys: () => ['Enter'] },
  { name: 'key_newline', keys: () => [shift, 'Enter'] },
  { name: 'key_stop', keys: () => ['Esc'] },
  { name: 'key_edit_last', keys: () => ['↑'] },
  { name: 'key_focus', keys: () => [shift, 'Esc'] },
  { name: 'key_new', keys: () => [control, shift, 'O'] },
  { name: 'key_search', keys: () => [control, 'K'] },
  { name: 'key_list', keys: () => [control, shift, 'S'] },
  { name: 'key_settings', keys: () => [control, ','] },
  { name: 'key_shortcuts', keys: () => [control, '/'] },
];

const ACTIONS = {
  'control shift o': () => open(null).then(() => focus('box')),
  'control k': () => {
    toggleList(true);
    focus('search');
  },
  'control shift s': () => toggleList(),
  'control ,': () => change({ dialog: { name: 'settings' } }),
  'control /': () => change({ dialog: { name: 'shortcuts' } }),
  'shift escape': () => focus('box'),
  escape: () => {
    if (state.editing) change({ editing: null });
    else if (state.drawer) change({ drawer: false });
    else if (state.running.has(state.current)) stop();
    // The browser's own use of the key: it empties the search, or leaves the full screen.
    else return false;
  },
};

/** Listens for the shortcuts. */
export function listen() {
  document.addEventListener('keydown', (event) => {
    // An input method uses the same keys while it composes; an open dialog has its own.
    if (event.isComposing || event.defaultPrevented || state.dialog) return;
    const names = [];
    if (apple ? event.metaKey : event.ctrlKey) names.push('control');
    if (event.shiftKey) names.push('shift');
    names.push(event.key.toLowerCase());
    const action = ACTIONS[names.join(' ')];
    if (!action || event.altKey) return;
    if (action() !== false) event.preventDefault();
  });
}

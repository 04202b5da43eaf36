// Where the focus goes when what had it is gone.

const POINTER = matchMedia('(hover: hover)');

/** Puts the focus on an element when it is there. */
export function focus(id) {
  requestAnimationFrame(() => document.getElementById(id)?.focus());
}

/** Puts the focus on the message box; not on phones, where the keyboard would cover half of what there is to read. */
export function focusBox() {
  if (POINTER.matches) focus('box');
}

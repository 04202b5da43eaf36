// Copying text. The clipboard's own interface exists only on pages that browsers call secure, 127.0.0.1 among them; a
// server on another computer of the same network is not. The old command works there, too.

/** Copies a text, and returns whether it worked. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const area = document.createElement('textarea');
  area.value = text;
  area.setAttribute('readonly', '');
  area.className = 'hidden';
  const focused = document.activeElement;
  // Inside an open dialog everything outside of it cannot be selected.
  (document.querySelector('dialog[open]') ?? document.body).append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  focused?.focus();
  return copied;
}

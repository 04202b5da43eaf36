// Small things the browser keeps in localStorage: language, theme, API key, and the settings of the next conversation.
//
// A browser that forbids storage makes every access throw; then the values last as long as the window.

const memory = new Map();

/** Returns a stored value, or `otherwise`. */
export function load(name, otherwise) {
  try {
    const text = localStorage.getItem(`nibble.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return memory.has(name) ? memory.get(name) : otherwise;
  }
}

/** Stores a value; `null` forgets it. */
export function save(name, value) {
  memory.set(name, value);
  try {
    if (value === null) localStorage.removeItem(`nibble.${name}`);
    else localStorage.setItem(`nibble.${name}`, JSON.stringify(value));
  } catch {
    // It is in memory.
  }
}

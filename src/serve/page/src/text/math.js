// Formulas in markdown: $x$, \(x\), $$x$$ and \[x\].
//
// The plugin only marks them, as text in an element of class `math`. `typeset` replaces them by KaTeX's elements after
// the sanitizer has seen the document. KaTeX then builds elements, not markup, and without `trust` it makes no links,
// images or attributes that the formula asks for.

import katex from 'katex';

// What a formula may ask of the browser. Longer ones stay text.
const LONGEST = 10000;
const OPTIONS = {
  throwOnError: true,
  strict: 'ignore',
  trust: false,
  maxExpand: 500,
  maxSize: 20,
  output: 'htmlAndMathml',
};

/** A markdown-it plugin. */
export function math(md) {
  md.inline.ruler.before('escape', 'math', inlineRule);
  md.block.ruler.before('fence', 'math', blockRule, { alt: ['paragraph', 'reference', 'blockquote', 'list'] });
  const render = (display) => (tokens, index) => {
    const name = display ? 'math display' : 'math';
    return `<span class="${name}">${md.utils.escapeHtml(tokens[index].content)}</span>`;
  };
  md.renderer.rules.math = render(false);
  md.renderer.rules.math_display = render(true);
}

const PAIRS = [
  { open: '$$', close: '$$', display: true },
  { open: '\\[', close: '\\]', display: true },
  { open: '\\(', close: '\\)', display: false },
  { open: '$', close: '$', display: false },
];

function inlineRule(state, silent) {
  const { src, pos, posMax } = state;
  const pair = PAIRS.find(({ open }) => src.startsWith(open, pos));
  if (!pair) return false;
  const start = pos + pair.open.length;
  const end = closing(src, start, posMax, pair);
  if (end < 0) return false;
  if (!silent) {
    const token = state.push(pair.display ? 'math_display' : 'math', 'span', 0);
    token.content = src.slice(start, end).trim();
  }
  state.pos = end + pair.close.length;
  return true;
}

/** Returns where the formula ends; -1 if it is none. A price is none: `$5 and $6`. */
function closing(src, start, most, { close }) {
  for (let end = start; end < most; end++) {
    if (src.startsWith(close, end)) {
      if (end === start) return -1;
      if (close !== '$') return end;
      const fits = !/\s/.test(src[start]) && !/\s/.test(src[end - 1]) && !/\d/.test(src[end + 1] ?? '');
      return fits ? end : -1;
    }
    if (src[end] === '\\') end++;
  }
  return -1;
}

// A formula that begins a line with $$ or \[ and ends at the first line that ends with its counterpart.
function blockRule(state, startLine, endLine, silent) {
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]);
  const first = line(startLine);
  const pair = PAIRS.slice(0, 2).find(({ open }) => first.startsWith(open));
  if (!pair || state.sCount[startLine] - state.blkIndent >= 4) return false;
  const rest = first.slice(pair.open.length);
  const lines = [rest];
  let last = startLine;
  while (!lines.at(-1).trimEnd().endsWith(pair.close)) {
    last++;
    const ends = last >= endLine || state.sCount[last] < state.blkIndent || line(last).trim() === '';
    if (ends) return false;
    lines.push(line(last));
  }
  const text = lines.join('\n').trimEnd().slice(0, -pair.close.length).trim();
  // `$$a$$ and $$b$$` is a line of text with formulas.
  if (!text || text.includes(pair.close)) return false;
  if (silent) return true;
  const token = state.push('math_display', 'span', 0);
  token.content = text;
  token.block = true;
  token.map = [startLine, last + 1];
  state.line = last + 1;
  return true;
}

/** Replaces the marked formulas by typeset ones. One that KaTeX does not understand stays as it was written. */
export function typeset(root) {
  for (const element of root.querySelectorAll('span.math')) {
    const source = element.textContent;
    const displayMode = element.classList.contains('display');
    try {
      if (source.length > LONGEST) throw new RangeError('too long');
      katex.render(source, element, { ...OPTIONS, displayMode });
    } catch {
      element.textContent = source;
      element.classList.add('source');
    }
  }
}

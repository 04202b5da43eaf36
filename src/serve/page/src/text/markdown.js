// A model's answer as elements of the document.
//
//   text ─► markdown-it ─► blocks ─► sanitize ─► typeset ─► elements
//           HTML escaped   one for each paragraph, list, code ...
//
// An answer grows by a few characters at a time. `Rendering` makes only those blocks again whose source has changed, so
// that long answers stay fast, and selections and scrolled code stay where they are.

import MarkdownIt from 'markdown-it';
import { cjk } from './cjk.js';
import { highlighted } from './highlight.js';
import { math, typeset } from './math.js';
import { sanitized } from './sanitize.js';

const md = new MarkdownIt({ html: false, linkify: true, breaks: true }).use(cjk).use(math);
// Only whole addresses: `example.com` in a sentence about files is too often `main.rs`.
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
// Links that lead into this server, and all schemes that are not for reading, are text.
md.validateLink = (url) => /^(?:https?|mailto):/i.test(url.trim());

const { escapeHtml } = md.utils;
const rules = md.renderer.rules;

// An image would be loaded from elsewhere, and tell its owner that this answer was read. A link waits for a click.
rules.image = (tokens, index, options, env, self) => {
  const token = tokens[index];
  const name = self.renderInlineAsText(token.children, options, env) || token.attrGet('src');
  return `<a class="image" href="${escapeHtml(token.attrGet('src'))}">${escapeHtml(name)}</a>`;
};
rules.fence = (tokens, index) => code(tokens[index].content, tokens[index].info.trim().split(/\s+/)[0]);
rules.code_block = (tokens, index) => code(tokens[index].content, '');
rules.table_open = () => '<div class="scroll"><table>';
rules.table_close = () => '</table></div>';
// The page has headings of its own above those of an answer.
rules.heading_open = (tokens, index) => `<h${level(tokens[index])}>`;
rules.heading_close = (tokens, index) => `</h${level(tokens[index])}>`;
// Alignment as a class: the Content-Security-Policy forbids style attributes.
for (const cell of ['th', 'td']) {
  rules[`${cell}_open`] = (tokens, index) => {
    const style = tokens[index].attrGet('style') ?? '';
    const name = style.includes('right') ? ' class="end"' : style.includes('center') ? ' class="center"' : '';
    return `<${cell}${name}>`;
  };
}

function level(token) {
  return Math.min(Number(token.tag[1]) + 2, 6);
}

function code(text, language) {
  const markup = highlighted(text, language.toLowerCase()) ?? escapeHtml(text);
  const name = escapeHtml(language.slice(0, 30));
  return `<div class="code" data-language="${name}"><pre><code class="hljs">${markup}</code></pre></div>`;
}

/** Whether blocks in blocks go so deep that markdown-it leaves out what is in them. */
function isTooDeep(tokens) {
  return tokens.some((token) => token.level >= md.options.maxNesting - 1);
}

function plain(source) {
  return `<p>${escapeHtml(source).replaceAll('\n', '<br>')}</p>`;
}

/** Returns the source and tokens of each block at the top level. */
function blocksOf(text) {
  const env = {};
  const tokens = md.parse(text, env);
  const lines = text.split(/\r\n?|\n/);
  // A definition of a link may change blocks before it.
  const references = env.references ? JSON.stringify(env.references) : '';
  const blocks = [];
  let from = 0;
  tokens.forEach((token, index) => {
    if (token.level !== 0 || token.nesting === 1) return;
    const own = tokens.slice(from, index + 1);
    const [start, end] = own[0].map ?? [0, lines.length];
    const source = lines.slice(start, end).join('\n');
    const markup = () => (isTooDeep(own) ? plain(source) : md.renderer.render(own, md.options, env));
    blocks.push({ key: `${own[0].type}\n${source}\n${references}`, markup });
    from = index + 1;
  });
  return blocks;
}

/** The elements of one text, kept up to date as it grows. */
export class Rendering {
  /** `decorate(element)` is called once for each new block. */
  constructor(parent, decorate) {
    this.parent = parent;
    this.decorate = decorate;
    this.keys = [];
  }

  /** Shows a text. */
  update(text) {
    const blocks = blocksOf(text);
    let same = 0;
    while (same < blocks.length && this.keys[same] === blocks[same].key) same++;
    while (this.parent.childNodes.length > same) this.parent.lastChild.remove();
    for (const block of blocks.slice(same)) this.parent.append(this.element(block));
    this.keys = blocks.map((block) => block.key);
  }

  element(block) {
    const element = document.createElement('div');
    element.className = 'block';
    element.append(sanitized(block.markup()));
    typeset(element);
    this.decorate(element);
    return element;
  }
}

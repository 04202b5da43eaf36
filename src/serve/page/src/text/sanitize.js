// The wall between what a model wrote and the document.
//
// markdown-it already escapes all HTML in its source. This is the second wall, in case it has a hole: a short list of
// elements and attributes, none of which loads or runs anything. The third is the Content-Security-Policy, which has
// `require-trusted-types-for 'script'`: no other code of this page can turn text into markup at all.

import DOMPurify from 'dompurify';

const OPTIONS = {
  ALLOWED_TAGS: [
    'a',
    'blockquote',
    'br',
    'code',
    'del',
    'div',
    'em',
    'h3',
    'h4',
    'h5',
    'h6',
    'hr',
    'li',
    'ol',
    'p',
    'pre',
    's',
    'span',
    'strong',
    'table',
    'tbody',
    'td',
    'th',
    'thead',
    'tr',
    'ul',
  ],
  ALLOWED_ATTR: ['class', 'data-language', 'href', 'start'],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // Their values are no addresses, and need not look like one.
  ADD_URI_SAFE_ATTR: ['data-language', 'start'],
  RETURN_DOM_FRAGMENT: true,
};

// Classes come from this page's own renderers, and are only these.
const CLASSES = /^(?:code|display|end|center|hljs(?:-[a-z_-]+)?|[a-z_]+_|image|math|scroll)$/;

DOMPurify.addHook('afterSanitizeAttributes', (element) => {
  const classes = [...element.classList];
  if (classes.some((name) => !CLASSES.test(name))) element.removeAttribute('class');
  if (element.localName !== 'a' || !element.hasAttribute('href')) return;
  // Only a click follows a link. It tells the other side nothing about this page, and shows where it goes.
  element.setAttribute('target', '_blank');
  element.setAttribute('rel', 'noopener noreferrer nofollow');
  element.setAttribute('referrerpolicy', 'no-referrer');
  element.setAttribute('title', element.getAttribute('href'));
});

/** Returns markup as a fragment of the document, with nothing in it that could run or load. */
export function sanitized(markup) {
  return DOMPurify.sanitize(markup, OPTIONS);
}

// What screen readers are told. One region of the page is live, and gets finished paragraphs and states; the answer
// itself is not, because it would be read again with every token.

const MOST = 30;

/** Has a text read out after what is being read. */
export function say(text) {
  const region = document.getElementById('speaker');
  if (!region || !text.trim()) return;
  const paragraph = document.createElement('p');
  paragraph.textContent = text;
  region.append(paragraph);
  while (region.childElementCount > MOST) region.firstElementChild.remove();
}

/** Has an element of an answer read out: without buttons, and formulas once. */
export function sayElement(element) {
  const copy = element.cloneNode(true);
  for (const silent of copy.querySelectorAll('button, [aria-hidden="true"], annotation')) silent.remove();
  say(copy.textContent);
}

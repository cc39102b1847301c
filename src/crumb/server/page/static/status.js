// What is said aloud and what went wrong. In: short texts. Out: the status region that screen
// readers speak, once for each event and never for each token; a notice that can be undone.

import { button, part } from './dom.js';

const NOTICE_SECONDS = 8;
let timer = null;

/** Have a screen reader say it. */
export function say(text) {
  part('status').textContent = text;
}

/** Show a line for a while; `undo`: a word and what it does. */
export function notice(text, undo = null) {
  const place = part('notice');
  place.replaceChildren(text);
  if (undo) place.append(button(undo.word, { class: 'quiet', onclick: () => { place.hidden = true; undo.action(); } }));
  place.hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (!place.contains(document.activeElement) && !place.matches(':hover')) place.hidden = true;
  }, 1000 * NOTICE_SECONDS);
}

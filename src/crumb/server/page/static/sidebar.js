// The list of conversations: open, rename, delete, search. In: the session's events, presses.
// Out: an ordered list by day. On a narrow page it covers the rest, and Escape puts it away.

import { answerOf, stop } from './answers.js';
import { search } from './conversation.js';
import { ask } from './dialogs.js';
import { button, element, part } from './dom.js';
import { session } from './session.js';
import { notice } from './status.js';

const narrow = matchMedia('(max-width: 50rem)');
let shownState = '';

function dayOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  const days = Math.floor((today - new Date(time).setHours(0, 0, 0, 0)) / 86_400_000);
  return days <= 0 ? 'Today' : days === 1 ? 'Yesterday' : days < 7 ? 'This week' : days < 31 ? 'This month' : 'Earlier';
}

function show() {
  const words = part('search').value;
  const hits = session.conversations
    .map((conversation) => ({ conversation, piece: words.trim() ? search(conversation, words) : '' }))
    .filter(({ piece }) => piece !== null);
  const state = JSON.stringify([words, session.current.id, hits.map(({ conversation, piece }) => [conversation.id, conversation.title, dayOf(conversation.updated), piece, Boolean(answerOf(conversation))])]);
  if (state === shownState) return;
  shownState = state;
  part('search-result').textContent = words.trim() ? `${hits.length} found` : '';
  const focused = document.activeElement?.dataset.focus;
  const days = grouped(hits);
  part('conversations').replaceChildren(...[...days].map(([day, entries]) => element('section', { 'aria-label': day }, element('h2', { text: day }), element('ul', {}, ...entries.map(row)))));
  if (!hits.length && words.trim()) part('conversations').replaceChildren(element('p', { class: 'muted', text: 'Nothing has these words.' }));
  if (focused) part('conversations').querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
}

const byDay = ({ conversation }) => dayOf(conversation.updated);

function grouped(hits) {
  const days = new Map();
  for (const hit of hits) days.set(byDay(hit), [...(days.get(byDay(hit)) ?? []), hit]);
  return days;
}

function row({ conversation, piece }) {
  const isOpen = conversation.id === session.current.id;
  const title = conversation.title || 'Untitled';
  return element('li', { class: isOpen ? 'open' : null },
    element('a', { href: `#${conversation.id}`, 'aria-current': isOpen ? 'page' : null, 'data-focus': `open ${conversation.id}`, onclick: (event) => { event.preventDefault(); session.open(conversation); hide(); } },
      element('span', { class: 'name', text: title }),
      piece ? element('span', { class: 'piece muted', text: piece }) : null),
    answerOf(conversation) ? element('span', { class: 'pulse', role: 'img', 'aria-label': 'being answered' }) : null,
    element('span', { class: 'acts' },
      button(`Rename ${title}`, { class: 'quiet icon', 'data-icon': 'edit', 'data-focus': `rename ${conversation.id}`, onclick: () => rename(conversation) }),
      button(`Delete ${title}`, { class: 'quiet icon', 'data-icon': 'bin', 'data-focus': `delete ${conversation.id}`, onclick: () => remove(conversation) })));
}

async function rename(conversation) {
  const title = await ask('Name of this conversation', 'Rename', conversation.title);
  if (!title) return;
  conversation.title = title;
  session.changed(conversation);
}

function remove(conversation) {
  stop(conversation);
  session.remove(conversation);
  part('new-conversation').focus();
  notice('Conversation deleted.', { word: 'Undo', action: () => { session.takeIn([conversation]); session.open(conversation); part('prompt').focus(); } });
}

function reveal() {
  document.body.classList.add('with-sidebar');
  part('open-sidebar').setAttribute('aria-expanded', 'true');
  part('shade').hidden = !narrow.matches;
  if (narrow.matches) part('close-sidebar').focus();
}

/** Put the list away; on a wide page only where `always` says so. */
export function hide(always = false) {
  if (!narrow.matches && !always) return;
  document.body.classList.remove('with-sidebar');
  part('open-sidebar').setAttribute('aria-expanded', 'false');
  part('shade').hidden = true;
}

export function startSidebar() {
  part('new-conversation').addEventListener('click', () => { session.openNew(); hide(); part('prompt').focus(); });
  part('search').addEventListener('input', show);
  part('open-sidebar').addEventListener('click', reveal);
  part('close-sidebar').addEventListener('click', () => { hide(true); part('open-sidebar').focus(); });
  part('shade').addEventListener('click', () => hide());
  part('sidebar').addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !narrow.matches) return;
    event.stopPropagation();
    hide();
    part('open-sidebar').focus();
  });
  narrow.addEventListener('change', () => (narrow.matches ? hide() : reveal()));
  if (narrow.matches) hide();
  else reveal();
  document.addEventListener('keydown', (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'k') { event.preventDefault(); reveal(); part('search').focus(); }
  });
  for (const event of ['listed', 'opened', 'changed', 'answered']) session.addEventListener(event, show);
}

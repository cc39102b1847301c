// The messages of the open conversation, in order; the end stays in sight while an answer grows.
// In: the session's events. Out: one view for each message of the path, kept while it is shown.
// What a button of a message does is here: another version, an edit, an answer again or further.

import { answer } from './answers.js';
import { add, byId, choose, path } from './conversation.js';
import { button, part } from './dom.js';
import { MessageView } from './message_view.js';
import { session } from './session.js';
import { say } from './status.js';

const NEAR = 48;
const STARTERS = [
  'Explain to a child why the sea is salty',
  'Write a short scene in a lighthouse at night',
  'Show me a function that finds the longest common prefix of a list of texts',
];

let shown = null;
let views = new Map();
let isAtEnd = true;

/** Append a user's message and have it answered. */
export function send(text) {
  const conversation = session.current;
  const message = add(conversation, path(conversation).at(-1) ?? null, { role: 'user', content: text });
  answerAfter(conversation, message);
  toEnd();
}

function answerAfter(conversation, parent) {
  return answer(conversation, add(conversation, parent, { role: 'assistant' }));
}

const actions = {
  say,
  again: (message) => answerAfter(session.current, byId(session.current, message.parent)),
  continue: (message) => answer(session.current, message, true),
  choose(message, direction) {
    choose(session.current, message);
    session.changed(session.current);
    views.get(message.id)?.focus(direction);
  },
  edited(message, content) {
    const conversation = session.current;
    const { role, parent, thinking } = message;
    const version = add(conversation, byId(conversation, parent) ?? null, { role, content, ...(thinking ? { thinking } : {}), ...(role === 'assistant' ? { ending: 'stopped' } : {}) });
    if (role === 'user') answerAfter(conversation, version);
    else session.changed(conversation);
    part('prompt').focus();
  },
  results(message, results) {
    const conversation = session.current;
    let parent = message;
    for (const { call, content } of results) parent = add(conversation, parent, { role: 'tool', content, call_id: call.id });
    answerAfter(conversation, parent);
  },
};

/** Show the open conversation. */
function show() {
  const conversation = session.current;
  if (shown !== conversation) {
    views = new Map();
    part('messages').replaceChildren();
    shown = conversation;
    isAtEnd = true;
  }
  const messages = path(conversation);
  const fresh = new Map(messages.map((message) => [message.id, views.get(message.id) ?? new MessageView(conversation, message, actions)]));
  for (const [id, view] of views) if (!fresh.has(id)) view.element.remove();
  let place = null;
  for (const view of fresh.values()) {
    const following = place ? place.nextElementSibling : part('messages').firstElementChild;
    if (following !== view.element) part('messages').insertBefore(view.element, following);
    place = view.element;
  }
  views = fresh;
  messages.forEach((message, index) => views.get(message.id).update(index === messages.length - 1));
  part('welcome').hidden = messages.length > 0;
  const title = conversation.title || 'New conversation';
  part('title').textContent = title;
  document.title = conversation.title ? `${title} · Crumb` : 'Crumb';
}

export function toEnd() {
  const transcript = part('transcript');
  transcript.scrollTop = transcript.scrollHeight;
  isAtEnd = true;
}

function followEnd() {
  const transcript = part('transcript');
  transcript.addEventListener('scroll', () => {
    isAtEnd = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < NEAR;
    part('to-end').hidden = isAtEnd;
  }, { passive: true });
  const sizes = new ResizeObserver(() => { if (isAtEnd) toEnd(); });
  sizes.observe(part('messages'));
  sizes.observe(transcript);
  part('to-end').addEventListener('click', () => { toEnd(); part('prompt').focus(); });
}

export function startTranscript() {
  part('starters').append(...STARTERS.map((text) => {
    const item = document.createElement('li');
    item.append(button(text, { class: 'starter', onclick: () => send(text) }));
    return item;
  }));
  followEnd();
  session.addEventListener('opened', show);
  session.addEventListener('changed', ({ detail }) => { if (detail === session.current) show(); });
}

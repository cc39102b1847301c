// The field for the next message, send and stop, and the figures below. In: keys and presses.
// Out: messages; speed and context of the conversation. Enter sends where there is a keyboard;
// on a phone it is a new line. A draft stays with its conversation while the page lives.

import { answerOf, stop } from './answers.js';
import { contextTokens } from './conversation.js';
import { part } from './dom.js';
import { fitHeight } from './edit_form.js';
import * as figures from './figures.js';
import { modelNamed } from './model_list.js';
import { session } from './session.js';
import { say } from './status.js';
import { send } from './transcript.js';

const drafts = new Map();
let open = null;

function sendDraft() {
  const text = part('prompt').value.trim();
  if (!text || answerOf(session.current)) return;
  part('prompt').value = '';
  fitHeight(part('prompt'));
  send(text);
}

function show() {
  const conversation = session.current;
  if (open !== conversation) {
    if (open) drafts.set(open.id, part('prompt').value);
    open = conversation;
    part('prompt').value = drafts.get(conversation.id) ?? '';
    fitHeight(part('prompt'));
  }
  const work = answerOf(conversation);
  const hadFocus = document.activeElement === part('stop') || document.activeElement === part('send');
  part('send').hidden = Boolean(work);
  part('stop').hidden = !work;
  if (hadFocus) (work ? part('stop') : part('prompt')).focus();
  part('send').disabled = !part('prompt').value.trim();
  part('speed').textContent = work?.phase === 'writing' || work?.phase === 'thinking' ? speedText(work.speed) : '';
  showContext(conversation);
}

const speedText = (speed) => (speed ? figures.speed(speed) : '');

function showContext(conversation) {
  const used = contextTokens(conversation);
  const total = modelNamed(conversation.model)?.contextTokens;
  part('context').hidden = used === null;
  if (used === null) return;
  part('context-text').textContent = total ? `${figures.count(used)} of ${figures.count(total)} tokens` : `${figures.count(used)} tokens`;
  part('context-meter').hidden = !total;
  if (total) Object.assign(part('context-meter'), { max: total, value: used, high: 0.9 * total });
}

function announce() {
  session.addEventListener('answered', ({ detail: { conversation, message } }) => {
    const tokens = message.figures?.completionTokens;
    const words = { stopped: 'Stopped', error: `Failed: ${message.error}`, length: 'Ended at the limit' }[message.ending] ?? 'Complete';
    const place = conversation === session.current ? '' : ` in ${conversation.title}`;
    say(words + (tokens ? `, ${figures.count(tokens)} tokens` : '') + place);
  });
  let spoken = null;
  session.addEventListener('changed', ({ detail }) => {
    const work = detail === session.current ? answerOf(detail) : null;
    if (work && spoken !== work) say('Generating');
    if (work) spoken = work;
  });
}

export function startComposer() {
  const field = part('prompt');
  const hasKeyboard = matchMedia('(pointer: fine)');
  field.addEventListener('input', () => { fitHeight(field); part('send').disabled = !field.value.trim(); });
  field.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || !hasKeyboard.matches) return;
    event.preventDefault();
    if (answerOf(session.current)) say('Wait for the answer, or stop it with Escape');
    else sendDraft();
  });
  part('composer').addEventListener('submit', (event) => { event.preventDefault(); sendDraft(); field.focus(); });
  part('stop').addEventListener('click', () => stop(session.current));
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !document.querySelector('dialog[open]')) stop(session.current);
  });
  for (const event of ['opened', 'changed', 'models']) session.addEventListener(event, show);
  announce();
}

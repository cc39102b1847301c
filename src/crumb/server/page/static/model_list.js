// The server's models, asked for again while one loads. In: the server. Out: event "models" of the
// session, the model of a conversation, and the button that names it. The page works without any.

import * as api from './api.js';
import { part } from './dom.js';
import * as figures from './figures.js';
import { session } from './session.js';

const WHILE_LOADING = 1000;
const IDLE = 15000;

export const list = { models: [], error: null, isKnown: false };
let timer = null;

/** The model of a name; the first that is loaded where there is no such name. */
export function modelNamed(id) {
  const { models } = list;
  return models.find((model) => model.id === id) ?? models.find((model) => model.state === 'loaded') ?? models[0];
}

export const isBusy = (model) => model?.state === 'loading' || model?.state === 'unloading';

/** Ask the server again, now. */
export async function refresh() {
  clearTimeout(timer);
  try {
    Object.assign(list, { models: await api.models(), error: null, isKnown: true });
  } catch (error) {
    list.error = error;
  }
  if (!session.current.model && !session.current.messages.length) session.current.model = modelNamed(null)?.id ?? null;
  session.dispatchEvent(new CustomEvent('models'));
  const wait = list.error || list.models.some(isBusy) ? WHILE_LOADING : IDLE;
  if (!document.hidden) timer = setTimeout(refresh, wait);
}

const STATES = { loading: 'loading', unloading: 'unloading', unloaded: 'loads with the first message' };

function showButton() {
  const model = modelNamed(session.current.model);
  const error = list.error?.message;
  part('model-dot').dataset.state = error ? 'error' : (model?.state ?? 'unloaded');
  part('model-name').textContent = model?.id ?? (error ? 'No server' : list.isKnown ? 'No model' : '…');
  const facts = [STATES[model?.state], model?.bitsPerWeight && figures.bits(model.bitsPerWeight)].filter(Boolean);
  part('model-note').textContent = error ?? facts.join(' · ');
  if (list.error?.status === 401) part('model-note').textContent = 'needs an API key: see Settings';
}

export function startModelList() {
  for (const event of ['models', 'opened']) session.addEventListener(event, showButton);
  document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh(); });
  session.addEventListener('answered', refresh);
  return refresh();
}

// The dialog of models: choose one, load it, let it go, and read its card.
// In: the list of models, presses. Out: the conversation's model; requests to load and unload.

import * as api from './api.js';
import { openDialog, prepareDialog } from './dialogs.js';
import { button, element, part } from './dom.js';
import * as figures from './figures.js';
import { showCard } from './model_card.js';
import { isBusy, list, modelNamed, refresh } from './model_list.js';
import { session } from './session.js';
import { notice, say } from './status.js';

const WORDS = { loaded: 'loaded', loading: 'loading …', unloading: 'unloading …', unloaded: 'not loaded' };
const CHANGES = { loaded: ['Unload', 'unload'], unloaded: ['Load', 'load'] };

let stateShown = '';

function show() {
  if (!part('models').open) return;
  const chosen = modelNamed(session.current.model);
  const state = JSON.stringify([list.models, chosen?.id, list.error?.message]);
  if (state === stateShown) return;
  stateShown = state;
  const focused = document.activeElement?.dataset.focus;
  part('model-list').replaceChildren(...list.models.map((model) => row(model, model === chosen)));
  if (list.error) part('model-list').append(element('p', { class: 'wrong', role: 'alert', text: list.error.message }));
  if (focused) part('model-list').querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  showCard(chosen);
}

function row(model, isChosen) {
  const facts = [
    model.parameters && figures.parameters(model.parameters),
    model.bitsPerWeight && figures.bits(model.bitsPerWeight),
    model.fileBytes && figures.bytes(model.fileBytes),
    model.contextTokens && `context ${figures.count(model.contextTokens)}`,
  ].filter(Boolean);
  const radio = element('input', { type: 'radio', name: 'model', value: model.id, 'data-focus': `choose ${model.id}`, onchange: () => session.setModel(model.id) });
  radio.checked = isChosen;
  return element('div', { class: 'model' },
    element('label', {}, radio,
      element('span', { class: 'model-text' },
        element('span', { class: 'model-id', text: model.id }),
        element('span', { class: 'muted', text: facts.join(' · ') }),
        model.failure ? element('span', { class: 'wrong', text: model.failure }) : null)),
    element('span', { class: 'state' }, element('span', { class: 'dot', 'data-state': model.state }), WORDS[model.state] ?? model.state),
    changeButton(model));
}

function changeButton(model) {
  const change = CHANGES[model.state];
  if (!change) return button(isBusy(model) ? 'Wait' : '', { disabled: true });
  const [word, verb] = change;
  return button(word, { 'aria-label': `${word} ${model.id}`, 'data-focus': `change ${model.id}`, onclick: () => ask(model, word, verb) });
}

async function ask(model, word, verb) {
  say(`${word} ${model.id}`);
  const asked = api[verb](model.id);
  setTimeout(refresh, 100);
  try {
    await asked;
    say(`${model.id}: ${verb === 'load' ? 'loaded' : 'unloaded'}`);
  } catch (error) {
    notice(`${model.id}: ${error.message}`);
  }
  refresh();
}

export function startModelDialog() {
  prepareDialog('models');
  part('open-models').addEventListener('click', () => {
    stateShown = '';
    openDialog('models');
    show();
    refresh();
  });
  for (const event of ['models', 'opened']) session.addEventListener(event, show);
}

// The dialog of settings: system prompt, sampling, tools; colours and key; conversations as a file.
// In: what is typed. Out: settings of the open conversation, where an empty field is the server's
// own choice; settings of the page in this browser.

import { stop } from './answers.js';
import { ask, openDialog, prepareDialog } from './dialogs.js';
import { button, element, part } from './dom.js';
import { refresh } from './model_list.js';
import { preference, setPreference } from './preferences.js';
import { NUMBERS, SERVER_DEFAULT, toolsOf } from './sampling.js';
import { session } from './session.js';
import { notice } from './status.js';
import { exported, imported } from './transfer.js';

function numberRow({ name, label, min, max, step }) {
  const field = element('input', { type: 'number', id: `set-${name}`, min, max, step: 'any', 'data-step': step, placeholder: SERVER_DEFAULT, inputmode: 'decimal' });
  const reset = button(`${label}: ${SERVER_DEFAULT}`, { class: 'quiet icon', 'data-icon': 'close', onclick: () => { field.value = ''; read(); field.focus(); } });
  return element('div', { class: 'row' }, element('label', { for: field.id, text: label }), field, reset);
}

function thinkingRow() {
  const field = element('select', { id: 'set-thinking' }, element('option', { value: '', text: SERVER_DEFAULT }), element('option', { value: 'true', text: 'on' }), element('option', { value: 'false', text: 'off' }));
  return element('div', { class: 'row' }, element('label', { for: field.id, text: 'Thinking' }), field);
}

function show() {
  const { settings } = session.current;
  part('system').value = settings.system ?? '';
  part('tools').value = settings.tools ?? '';
  for (const { name } of NUMBERS) part(`set-${name}`).value = settings[name] ?? '';
  part('set-thinking').value = settings.thinking === undefined ? '' : String(settings.thinking);
  part('as-default').checked = false;
  showResets();
}

function showResets() {
  for (const { name } of NUMBERS) part(`set-${name}`).nextElementSibling.hidden = part(`set-${name}`).value === '';
}

/** What the form says, into the conversation. */
function read() {
  const settings = {};
  if (part('system').value.trim()) settings.system = part('system').value;
  if (part('tools').value.trim()) settings.tools = part('tools').value;
  for (const { name } of NUMBERS) {
    const field = part(`set-${name}`);
    if (field.value !== '' && field.validity.valid) settings[name] = Number(field.value);
  }
  if (part('set-thinking').value) settings.thinking = part('set-thinking').value === 'true';
  session.current.settings = settings;
  session.save(session.current);
  if (part('as-default').checked) session.defaults = settings;
  showResets();
  part('tools-error').textContent = wrongTools();
}

function wrongTools() {
  try {
    toolsOf(part('tools').value);
    return '';
  } catch (error) {
    return error.message;
  }
}

function applyTheme() {
  const theme = preference('theme');
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  part('theme').value = theme;
}

function exportAll() {
  const address = URL.createObjectURL(new Blob([exported(session.conversations)], { type: 'application/json' }));
  const link = element('a', { href: address, download: `crumb-conversations-${new Date().toISOString().slice(0, 10)}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

async function importFile(file) {
  try {
    const conversations = imported(await file.text());
    const fresh = session.takeIn(conversations);
    notice(`${fresh} of ${conversations.length} conversations came in${fresh < conversations.length ? '; the others are here already' : ''}.`);
  } catch (error) {
    notice(error.message);
  }
}

async function deleteAll() {
  const all = [...session.conversations];
  if (!(await ask(`Delete all ${all.length} conversations in this browser?`, 'Delete all'))) return;
  all.forEach(stop);
  session.removeAll();
  notice('All conversations are deleted.', { word: 'Undo', action: () => session.takeIn(all) });
}

export function startSettings() {
  prepareDialog('settings');
  part('sampling').append(...NUMBERS.map(numberRow), thinkingRow());
  part('settings-form').addEventListener('input', read);
  part('open-settings').addEventListener('click', () => { show(); openDialog('settings'); });
  part('key').value = preference('key');
  part('key').addEventListener('change', () => { setPreference('key', part('key').value.trim()); refresh(); });
  part('theme').addEventListener('change', () => { setPreference('theme', part('theme').value); applyTheme(); });
  part('export').addEventListener('click', exportAll);
  part('import').addEventListener('click', () => part('import-file').click());
  part('import-file').addEventListener('change', ({ target }) => { if (target.files[0]) importFile(target.files[0]); target.value = ''; });
  part('delete-all').addEventListener('click', deleteAll);
  applyTheme();
}

// Dialogs: the browser's own, so that focus stays inside, Escape closes and focus comes back.
// In: a dialog's id, or a question. Out: an opened dialog, or a promise of the answer.

import { part } from './dom.js';

export function openDialog(id) {
  const dialog = part(id);
  if (!dialog.open) dialog.showModal();
}

/** Close on a press of its close button, and beside it. */
export function prepareDialog(id) {
  const dialog = part(id);
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog || event.target.closest('.close[type="button"]')) dialog.close();
  });
}

/** Ask; true, or with `text` the text itself, where the answer is yes; else null. */
export function ask(question, yes, text = null) {
  const dialog = part('question');
  part('question-text').textContent = question;
  part('question-yes').textContent = yes;
  part('question-field').hidden = text === null;
  part('question-input').value = text ?? '';
  dialog.returnValue = 'no';
  dialog.showModal();
  if (text !== null) part('question-input').select();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      const agreed = dialog.returnValue === 'yes';
      resolve(agreed ? (text === null ? true : part('question-input').value.trim()) : null);
    }, { once: true });
  });
}

// A message's text in a field, to be changed. In: the message, and who hears of the end.
// Out: a form; it ends with the new text, or null where nothing is to change. Escape leaves it.

import { button, element } from './dom.js';

export class EditForm {
  constructor(message, end) {
    const isUser = message.role === 'user';
    this.field = element('textarea', { 'aria-label': isUser ? 'Your message' : 'The answer', rows: '1' });
    this.field.value = message.content;
    const save = () => {
      const text = this.field.value;
      end(text.trim() && text !== message.content ? text : null);
    };
    this.element = element('form', { class: 'edit' }, this.field,
      element('div', { class: 'buttons end' },
        button('Cancel', { onclick: () => end(null) }),
        element('button', { type: 'submit', class: 'strong', text: isUser ? 'Send' : 'Keep as a version' })));
    this.element.addEventListener('submit', (event) => { event.preventDefault(); save(); });
    this.field.addEventListener('input', () => fitHeight(this.field));
    this.field.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') { event.stopPropagation(); end(null); }
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(); }
    });
  }

  /** Once it is in the page. */
  begin() {
    fitHeight(this.field);
    this.field.focus();
    this.field.setSelectionRange(this.field.value.length, this.field.value.length);
  }
}

/** As high as its text, within what its style allows. */
export function fitHeight(field) {
  field.style.height = 'auto';
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

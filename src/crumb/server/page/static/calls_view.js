// Tool calls of an answer. In: a message, and who takes results. Out: an element with each call's
// name and arguments and, where the answer is the last, fields for what the tools gave back.

import { element } from './dom.js';

export class CallsView {
  #state = null;

  constructor(message, send) {
    Object.assign(this, { message, send });
    this.element = element('div', { class: 'calls', hidden: true });
  }

  /** `open`: results are asked for. */
  update(open) {
    const calls = (this.message.calls ?? []).filter(Boolean);
    const state = JSON.stringify([calls, open]);
    if (state === this.#state) return;
    this.#state = state;
    this.element.hidden = !calls.length;
    if (!calls.length) return;
    const fields = calls.map((call) => element('textarea', { rows: '2', class: 'mono', 'aria-label': `Result of ${call.name}`, placeholder: 'What the tool gave back' }));
    const cards = calls.map((call, index) => element('div', { class: 'call' },
      element('p', {}, element('span', { class: 'muted', text: 'calls ' }), element('code', { text: call.name })),
      element('pre', { tabindex: '0', role: 'group', 'aria-label': `Arguments of ${call.name}` }, element('code', { text: pretty(call.arguments) })),
      open ? fields[index] : null));
    const form = element('form', {}, ...cards, open ? element('div', { class: 'buttons end' }, element('button', { type: 'submit', class: 'strong', text: calls.length > 1 ? 'Send results' : 'Send result' })) : null);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.send(calls.map((call, index) => ({ call, content: fields[index].value })));
    });
    this.element.replaceChildren(form);
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

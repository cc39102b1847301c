// One message on the page: its text, thinking, tool calls, what went wrong, versions and buttons.
// In: a message, what goes on with it, and what each button does. Out: an element that follows it.

import { answerOf } from './answers.js';
import { versions } from './conversation.js';
import { button, copyText, element } from './dom.js';
import { EditForm } from './edit_form.js';
import * as figures from './figures.js';
import { RenderedText } from './rendered_text.js';
import { CallsView } from './calls_view.js';

const NAMES = { user: 'You', assistant: 'Answer', tool: 'Result of a tool' };
const ENDINGS = { stopped: 'stopped', length: 'ended at the limit of tokens', error: '' };

export class MessageView {
  constructor(conversation, message, actions) {
    Object.assign(this, { conversation, message, actions });
    this.body = element('div', { class: message.role === 'assistant' ? 'prose' : 'text' });
    this.footer = element('div', { class: 'footer' });
    this.element = element('article', { class: `message ${message.role}`, 'aria-label': NAMES[message.role], 'data-id': message.id });
    if (message.role === 'assistant') this.#makeAnswer();
    else this.element.append(this.body, this.footer);
  }

  #makeAnswer() {
    const settled = () => this.#updateBusy();
    this.rendered = new RenderedText(this.body, settled);
    this.thinkingText = element('div', { class: 'prose' });
    this.thinkingWord = element('span');
    this.thinking = element('details', { class: 'thinking' }, element('summary', {}, this.thinkingWord), this.thinkingText);
    this.thinking.addEventListener('toggle', () => this.update());
    this.renderedThinking = new RenderedText(this.thinkingText, settled);
    this.calls = new CallsView(this.message, (results) => this.actions.results(this.message, results));
    this.waiting = element('div', { class: 'waiting' });
    this.wrong = element('p', { class: 'wrong', role: 'alert' });
    this.element.append(this.thinking, this.body, this.calls.element, this.waiting, this.wrong, this.footer);
  }

  /** Show the message as it is now. `isLast`: no other follows it. */
  update(isLast = this.isLast) {
    this.isLast = isLast;
    const work = answerOf(this.conversation);
    const own = work?.message === this.message ? work : null;
    this.element.classList.toggle('last', isLast);
    if (this.message.role === 'assistant') this.#updateAnswer(own);
    else if (!this.editing) this.body.textContent = this.message.content;
    this.#updateFooter(Boolean(work), own);
    this.#updateBusy();
  }

  /** Busy until the last words of the answer are shown. */
  #updateBusy() {
    const isAnswered = answerOf(this.conversation)?.message !== this.message;
    const isBusy = !isAnswered || this.rendered?.busy || this.renderedThinking?.busy;
    this.element.setAttribute('aria-busy', String(Boolean(isBusy)));
  }

  #updateAnswer(own) {
    const { content, thinking, error } = this.message;
    if (content || !own) this.rendered.set(content, Boolean(own));
    this.thinking.hidden = !thinking;
    if (thinking) {
      this.thinkingWord.textContent = this.#thinkingWords(own);
      this.thinking.classList.toggle('active', own?.phase === 'thinking');
      if (this.thinking.open) this.renderedThinking.set(thinking, own?.phase === 'thinking');
    }
    this.calls.update(this.isLast && !own);
    this.#updateWaiting(own);
    this.wrong.textContent = error ?? '';
    this.wrong.hidden = !error;
  }

  #thinkingWords(own) {
    if (own?.phase === 'thinking') return 'Thinking';
    const seconds = this.message.figures?.thinkingSeconds;
    return seconds > 0.1 ? `Thought for ${figures.seconds(seconds)}` : 'Thinking';
  }

  #updateWaiting(own) {
    const isShown = own && (own.phase === 'waiting' || own.phase === 'reading');
    this.waiting.hidden = !isShown;
    if (!isShown) return;
    if (!this.waiting.firstChild) {
      this.waiting.append(element('span', { class: 'pulse', 'aria-hidden': 'true' }), element('span'), element('progress', { max: '1', 'aria-label': 'Prompt read' }));
    }
    const [, words, bar] = this.waiting.children;
    const { total, processed } = own.progress ?? {};
    bar.hidden = !(own.phase === 'reading' && total);
    if (!bar.hidden) bar.value = processed / total;
    words.textContent = bar.hidden ? own.note : `Reading ${figures.count(processed)} of ${figures.count(total)} tokens`;
  }

  #updateFooter(anyWork, own) {
    const { message, conversation, actions } = this;
    const all = versions(conversation, message);
    const state = JSON.stringify([all.map(({ id }) => id), anyWork, Boolean(own), message.ending, message.figures, this.editing, this.isLast]);
    if (state === this.footerState) return;
    this.footerState = state;
    const focused = this.footer.contains(document.activeElement) ? document.activeElement.dataset.act : null;
    this.footer.replaceChildren();
    if (own || this.editing) return;
    if (all.length > 1) this.footer.append(this.#versionButtons(all, anyWork));
    const add = (act, label, icon, onclick) => this.footer.append(button(label, { class: 'quiet icon', 'data-icon': icon, 'data-act': act, onclick }));
    if (message.content) add('copy', 'Copy', 'copy', (event) => this.#copy(event.currentTarget));
    if (!anyWork && message.role !== 'tool' && message.content) add('edit', 'Edit', 'edit', () => this.edit());
    if (!anyWork && message.role === 'assistant') {
      add('again', 'Answer again', 'redo', () => actions.again(message));
      if (this.isLast && ['stopped', 'length', 'error'].includes(message.ending) && message.content) add('continue', 'Continue this answer', 'forward', () => actions.continue(message));
    }
    const line = this.#figures();
    if (line) this.footer.append(element('span', { class: 'muted facts', text: line }));
    if (focused) this.footer.querySelector(`[data-act="${focused}"]`)?.focus();
  }

  #versionButtons(all, anyWork) {
    const index = all.indexOf(this.message);
    const turn = (label, icon, to) => button(label, { class: 'quiet icon', 'data-icon': icon, 'data-act': icon, disabled: !all[to] || anyWork, onclick: () => this.actions.choose(all[to], icon) });
    return element('span', { class: 'versions', role: 'group', 'aria-label': 'Versions' },
      turn('Version before', 'left', index - 1),
      element('span', { text: `${index + 1} / ${all.length}`, 'aria-label': `Version ${index + 1} of ${all.length}` }),
      turn('Version after', 'right', index + 1));
  }

  #figures() {
    const { model, ending, figures: numbers } = this.message;
    return [
      model,
      numbers?.tokensPerSecond && figures.speed(numbers.tokensPerSecond),
      numbers?.completionTokens && `${figures.count(numbers.completionTokens)} tokens`,
      ENDINGS[ending],
    ].filter(Boolean).join(' · ');
  }

  async #copy(pressed) {
    const done = await copyText(this.message.content);
    pressed.classList.toggle('done', done);
    setTimeout(() => pressed.classList.remove('done'), 1500);
    this.actions.say(done ? 'Copied' : 'The browser does not let this page copy');
  }

  /** Change the text: a new version, which a user's message has answered. */
  edit() {
    const form = new EditForm(this.message, (text) => {
      this.editing = false;
      form.element.replaceWith(this.body);
      this.update();
      if (text === null) this.focus('edit');
      else this.actions.edited(this.message, text);
    });
    this.editing = true;
    this.body.replaceWith(form.element);
    this.update();
    form.begin();
  }

  /** Put the focus on a button of the footer. */
  focus(act) {
    const sought = this.footer.querySelector(`[data-act="${act}"]:not(:disabled)`) ?? this.footer.querySelector('button:not(:disabled)');
    sought?.focus();
  }
}

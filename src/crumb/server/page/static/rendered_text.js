// Markdown in the page: the server renders it, and while a text grows only its last block again.
// In: a text as it grows. Out: elements, one for each block. Where no HTML comes, the text itself is
// shown. This is the only place where HTML enters the page.

import * as api from './api.js';
import { copyText, element } from './dom.js';

const PAUSE = 90;
const MOST_CHARACTERS = 200_000;
const MOST_REMEMBERED = 200;

const policy = window.trustedTypes?.createPolicy('crumb-rendered', { createHTML: (html) => html }) ?? { createHTML: (html) => html };

const waiting = [];
const remembered = new Map();

/** Blocks of a finished text; texts of one moment are asked for together, and remembered. */
function rendered(text) {
  if (remembered.has(text)) return remembered.get(text);
  return new Promise((resolve, reject) => {
    waiting.push({ text, resolve, reject });
    if (waiting.length === 1) queueMicrotask(renderWaiting);
  });
}

function remember(text, blocks) {
  if (remembered.size >= MOST_REMEMBERED) remembered.delete(remembered.keys().next().value);
  remembered.set(text, blocks);
}

async function renderWaiting() {
  while (waiting.length) {
    let characters = 0;
    const batch = [];
    while (waiting.length && (!batch.length || characters + waiting[0].text.length < MOST_CHARACTERS)) {
      batch.push(waiting.shift());
      characters += batch.at(-1).text.length;
    }
    try {
      const texts = await api.render(batch.map((each) => each.text));
      batch.forEach((each, index) => { remember(each.text, texts[index]); each.resolve(texts[index]); });
    } catch (error) {
      batch.forEach((each) => each.reject(error));
    }
  }
}

export class RenderedText {
  #blocks = [];
  #next = null;
  #shown = null;
  busy = false; // what is shown is not yet what was set

  /** @param {HTMLElement} container - to fill. @param {Function} settled - called when it shows what was set. */
  constructor(container, settled) {
    Object.assign(this, { container, settled });
    container.addEventListener('click', copyCode);
  }

  /** Show a text; `growing`: it goes on. Later texts overtake those that wait. */
  set(text, growing) {
    const lines = text.replace(/\r\n?/g, '\n');
    if (this.#shown?.text === lines && this.#shown.growing === growing) return;
    this.#shown = { text: lines, growing };
    this.#next = this.#shown;
    if (!this.busy) this.#work();
  }

  async #work() {
    this.busy = true;
    while (this.#next) {
      const { text, growing } = this.#next;
      this.#next = null;
      try {
        const begin = growing ? (this.#blocks.at(-1)?.line ?? 0) : 0;
        const rest = text.split('\n').slice(begin).join('\n');
        const blocks = growing ? (await api.render([rest], true))[0] : await rendered(rest);
        this.#place(begin, blocks);
      } catch {
        this.#plain(text);
      }
      if (this.#next?.growing) await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
    this.busy = false;
    this.settled();
  }

  /** Put blocks that begin at a line in the place of those that were there. */
  #place(begin, blocks) {
    const before = this.#blocks.filter((block) => block.line < begin);
    const after = this.#blocks.slice(before.length);
    const fresh = blocks.map(({ line, html }, index) => {
      const old = after[index];
      if (old?.html === html) return { ...old, line: begin + line };
      const node = element('div', { class: 'block' });
      node.innerHTML = policy.createHTML(html);
      return { line: begin + line, html, node };
    });
    const nodes = new Set(fresh.map((block) => block.node));
    for (const old of after) if (!nodes.has(old.node)) old.node.remove();
    if (!before.length && !after.length) this.container.replaceChildren();
    let place = before.at(-1)?.node ?? null;
    for (const { node } of fresh) {
      const following = place ? place.nextSibling : this.container.firstChild;
      if (following !== node) this.container.insertBefore(node, following);
      place = node;
    }
    this.#blocks = [...before, ...fresh];
  }

  #plain(text) {
    const node = element('div', { class: 'block plain', text });
    this.#blocks = [];
    this.container.replaceChildren(node);
  }
}

async function copyCode(event) {
  const pressed = event.target.closest('.copy-code');
  if (!pressed) return;
  const done = await copyText(pressed.closest('figure').querySelector('code').textContent);
  pressed.textContent = done ? 'Copied' : 'Not copied';
  setTimeout(() => { pressed.textContent = 'Copy'; }, 1500);
}

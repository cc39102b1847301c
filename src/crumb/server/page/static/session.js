// The conversations of this page and the one that is open; who shows them hears of changes.
// In: what the other parts do. Out: events "listed" (titles, order), "opened", "changed" (messages).
// A conversation is stored once it has a message; an empty one is not.

import { newConversation } from './conversation.js';
import { preference, setPreference } from './preferences.js';
import { Store } from './store.js';

class Session extends EventTarget {
  store = new Store();
  conversations = [];
  current = newConversation();
  busy = new Set(); // ids of conversations that are being answered here
  #gone = new Set(); // ids of those that were removed: an answer that ends late does not save them

  async begin() {
    this.conversations = await this.store.open();
    this.store.listen((changed, removed) => this.#hear(changed, removed));
    this.openNamed(location.hash.slice(1));
    addEventListener('hashchange', () => this.openNamed(location.hash.slice(1)));
  }

  get defaults() {
    try {
      return JSON.parse(preference('defaults') || '{}');
    } catch {
      return {};
    }
  }

  set defaults(settings) {
    setPreference('defaults', JSON.stringify(settings));
  }

  /** Open the conversation of an id, or a new one where there is none. */
  openNamed(id) {
    if (id && id === this.current.id && this.current.messages.length) return;
    const named = this.conversations.find((each) => each.id === id);
    this.current = named ?? newConversation(preference('model') || null, this.defaults);
    this.#tell('opened');
  }

  open(conversation) {
    history.pushState(null, '', `#${conversation.id}`);
    this.openNamed(conversation.id);
  }

  openNew() {
    history.pushState(null, '', location.pathname + location.search);
    this.openNamed('');
  }

  setModel(id) {
    this.current.model = id;
    setPreference('model', id);
    this.save(this.current);
    this.#tell('opened');
  }

  /** Messages changed: show them; `store`: and keep them. */
  changed(conversation, store = true) {
    if (store) this.save(conversation);
    this.#tell('changed', conversation);
  }

  save(conversation) {
    if (!conversation.messages.length || this.#gone.has(conversation.id)) return;
    if (!this.conversations.includes(conversation)) {
      this.conversations.unshift(conversation);
      if (conversation === this.current) history.replaceState(null, '', `#${conversation.id}`);
    }
    this.conversations.sort((one, other) => other.updated - one.updated);
    this.store.save(conversation).catch((error) => this.#tell('failed', error));
    this.#tell('listed');
  }

  remove(conversation) {
    this.#gone.add(conversation.id);
    this.conversations = this.conversations.filter((each) => each !== conversation);
    this.store.remove(conversation.id);
    this.#tell('listed');
    if (conversation === this.current) this.openNew();
  }

  removeAll() {
    for (const each of this.conversations) this.#gone.add(each.id);
    this.store.remove(...this.conversations.map((each) => each.id));
    this.conversations = [];
    this.#tell('listed');
    this.openNew();
  }

  /** Take in conversations of a file; of two with one id the later one stays. Gives how many came. */
  takeIn(conversations) {
    const fresh = conversations.filter(({ id, updated }) => !this.conversations.some((each) => each.id === id && each.updated >= updated));
    const ids = new Set(fresh.map((each) => each.id));
    for (const id of ids) this.#gone.delete(id);
    this.conversations = [...this.conversations.filter((each) => !ids.has(each.id)), ...fresh];
    this.conversations.sort((one, other) => other.updated - one.updated);
    this.store.save(...fresh).catch((error) => this.#tell('failed', error));
    this.#tell('listed');
    if (ids.has(this.current.id)) {
      this.current = newConversation();
      this.openNamed(location.hash.slice(1));
    }
    return fresh.length;
  }

  /** Another tab of this browser changed a conversation, or removed some. */
  #hear(changed, removed) {
    const gone = new Set([...removed, changed?.id]);
    const before = this.conversations.find((each) => each.id === changed?.id);
    if (this.busy.has(changed?.id) || (before && before.updated > changed.updated)) return;
    this.conversations = this.conversations.filter((each) => !gone.has(each.id));
    if (changed) this.conversations.push(changed);
    this.conversations.sort((one, other) => other.updated - one.updated);
    this.#tell('listed');
    if (changed?.id === this.current.id) {
      this.current = changed;
      this.#tell('opened');
    }
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

export const session = new Session();

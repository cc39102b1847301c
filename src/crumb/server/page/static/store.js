// Conversations in this browser's IndexedDB; where it is shut (private windows), in memory alone.
// In: conversations. Out: all of them, once, at the start; later changes go one way.
// Settings of the page itself lie in localStorage.

const DATABASE = 'crumb';
const TABLE = 'conversations';

const settled = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Store {
  #database = null;
  #channel = null;

  /** Open it, and give all conversations, latest first. */
  async open() {
    try {
      const opening = indexedDB.open(DATABASE, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: 'id' });
      this.#database = await settled(opening);
      const all = await settled(this.#table('readonly').getAll());
      return all.sort((one, other) => other.updated - one.updated);
    } catch {
      this.#database = null;
      return [];
    }
  }

  /** Whether what is written outlives the page. */
  get lasts() {
    return this.#database !== null;
  }

  async save(...conversations) {
    if (!this.#database) return;
    const table = this.#table('readwrite');
    await Promise.all(conversations.map((each) => settled(table.put(each))));
    this.#channel?.postMessage({ changed: conversations, removed: [] });
  }

  async remove(...ids) {
    if (!this.#database) return;
    const table = this.#table('readwrite');
    await Promise.all(ids.map((id) => settled(table.delete(id))));
    this.#channel?.postMessage({ changed: [], removed: ids });
  }

  /** Hear what other tabs of this browser do: hear(changed or null, ids that were removed). */
  listen(hear) {
    this.#channel = new BroadcastChannel(DATABASE);
    this.#channel.onmessage = ({ data: { changed, removed } }) => {
      for (const each of changed.length ? changed : [null]) hear(each, removed);
    };
  }

  #table(mode) {
    return this.#database.transaction(TABLE, mode).objectStore(TABLE);
  }
}

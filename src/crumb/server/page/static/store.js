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
    await Promise.all(conversations.map((each) => settled(table.put(structuredClone(each)))));
  }

  async remove(id) {
    if (this.#database) await settled(this.#table('readwrite').delete(id));
  }

  async clear() {
    if (this.#database) await settled(this.#table('readwrite').clear());
  }

  #table(mode) {
    return this.#database.transaction(TABLE, mode).objectStore(TABLE);
  }
}

// Small settings of the page in localStorage; where a browser shuts it, they last with the page.

const inMemory = new Map();

export function preference(name) {
  try {
    return localStorage.getItem(`crumb-${name}`) ?? '';
  } catch {
    return inMemory.get(name) ?? '';
  }
}

/** Keep it; an empty text takes it away. */
export function setPreference(name, text) {
  try {
    if (text) localStorage.setItem(`crumb-${name}`, text);
    else localStorage.removeItem(`crumb-${name}`);
  } catch {
    inMemory.set(name, text);
  }
}

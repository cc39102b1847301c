// Conversations as a file, and back. In: conversations, or the text of a file somebody hands us.
// Out: JSON with a version, or conversations whose every field has been looked at.
// Refuses a file that is not ours; passes over nothing silently: it says how many came in.

import { newId } from './conversation.js';

const FORMAT = 'crumb-conversations';
const ROLES = ['user', 'assistant', 'tool'];

export function exported(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations }, null, 1);
}

/** Conversations of a file. Raises: Error with one line for the reader. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error('The file is not JSON.');
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error('The file has no conversations of this page.');
  if (file.version !== 1) throw new Error(`The file has version ${file.version}; this page reads version 1.`);
  return file.conversations.map(checkedConversation);
}

const string = (value, otherwise = '') => (typeof value === 'string' ? value : otherwise);
const number = (value, otherwise = null) => (typeof value === 'number' && Number.isFinite(value) ? value : otherwise);
const record = (value) => (value !== null && typeof value === 'object' && !Array.isArray(value) ? value : {});

function checkedConversation(value) {
  const from = record(value);
  const list = Array.isArray(from.messages) ? from.messages : [];
  const messages = list.map(checkedMessage).filter((message) => ROLES.includes(message.role));
  const ids = new Set();
  for (const message of messages) {
    // a message answers one that came before it, so that no circle can be
    if (ids.has(message.id)) throw new Error(`The file has two messages with one id in “${string(from.title)}”.`);
    if (message.parent !== null && !ids.has(message.parent)) throw new Error(`The file has a message that answers nothing in “${string(from.title)}”.`);
    ids.add(message.id);
  }
  const now = Date.now();
  return {
    id: string(from.id) || newId(),
    title: string(from.title).slice(0, 200),
    created: number(from.created, now),
    updated: number(from.updated, now),
    model: string(from.model) || null,
    settings: checkedSettings(from.settings),
    messages,
    chosen: Object.fromEntries(Object.entries(record(from.chosen)).filter(([, id]) => ids.has(id))),
  };
}

function checkedMessage(value) {
  const from = record(value);
  const message = { id: string(from.id) || newId(), parent: string(from.parent) || null, role: string(from.role), content: string(from.content), created: number(from.created, 0) };
  for (const name of ['thinking', 'model', 'ending', 'error', 'call_id']) if (string(from[name])) message[name] = from[name];
  if (Array.isArray(from.calls)) message.calls = from.calls.map((call) => ({ id: string(record(call).id), name: string(record(call).name), arguments: string(record(call).arguments) }));
  const figures = Object.entries(record(from.figures)).filter(([, figure]) => number(figure) !== null);
  if (figures.length) message.figures = Object.fromEntries(figures);
  return message;
}

function checkedSettings(value) {
  const plain = ([, each]) => ['string', 'number', 'boolean'].includes(typeof each);
  return Object.fromEntries(Object.entries(record(value)).filter(plain));
}

// A conversation as a tree of messages: an edit or another answer is a sibling, nothing is lost.
// In: a conversation and what happened. Out: the path of messages that is shown, its versions, the
// messages as a model is to read them. No element and no request here.

export const newId = () => (crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join(''));

const ROOT = '';
const TITLE_LENGTH = 60;

/** A conversation without messages. Settings: those that differ from the server's own. */
export function newConversation(model = null, settings = {}) {
  const now = Date.now();
  return { id: newId(), title: '', created: now, updated: now, model, settings: { ...settings }, messages: [], chosen: {} };
}

const children = (conversation, parent) => conversation.messages.filter((message) => (message.parent ?? ROOT) === (parent ?? ROOT));

export const byId = (conversation, id) => conversation.messages.find((message) => message.id === id);

/** The messages that are shown, first to last. */
export function path(conversation) {
  const shown = [];
  let parent = ROOT;
  for (;;) {
    const versions = children(conversation, parent);
    if (!versions.length) return shown;
    const next = versions.find((message) => message.id === conversation.chosen[parent]) ?? versions.at(-1);
    shown.push(next);
    parent = next.id;
  }
}

/** All messages in the place of one, oldest first. */
export const versions = (conversation, message) => children(conversation, message.parent);

/** Show this version of a message. */
export function choose(conversation, message) {
  conversation.chosen[message.parent ?? ROOT] = message.id;
}

/** A new message after `parent` (null: the first), which is then the version shown. */
export function add(conversation, parent, fields) {
  const message = { id: newId(), parent: parent?.id ?? null, created: Date.now(), content: '', ...fields };
  conversation.messages.push(message);
  choose(conversation, message);
  conversation.updated = message.created;
  if (!conversation.title && message.role === 'user') conversation.title = titleOf(message.content);
  return message;
}

export function titleOf(text) {
  const line = text.trim().split('\n')[0].replace(/\s+/g, ' ');
  return line.length <= TITLE_LENGTH ? line : `${line.slice(0, TITLE_LENGTH).replace(/\s\S*$/, '')}…`;
}

/** What the model is to read: the system prompt and the path up to and with `last`. */
export function modelMessages(conversation, last) {
  const shown = path(conversation);
  const end = shown.findIndex((message) => message.id === last?.id);
  const system = conversation.settings.system?.trim();
  return [
    ...(system ? [{ role: 'system', content: system }] : []),
    ...shown.slice(0, end + 1).map(modelMessage),
  ];
}

function modelMessage({ role, content, thinking, calls, call_id: callId }) {
  if (role === 'tool') return { role, content, tool_call_id: callId };
  if (role !== 'assistant') return { role, content };
  return {
    role,
    content,
    ...(thinking ? { reasoning_content: thinking } : {}),
    ...(calls?.length ? { tool_calls: calls.map((call) => ({ id: call.id, type: 'function', function: { name: call.name, arguments: call.arguments } })) } : {}),
  };
}

/** Tokens of the context that the path fills, as its last answer was told; null before one. */
export function contextTokens(conversation) {
  const figures = path(conversation).findLast((message) => message.figures?.promptTokens)?.figures;
  return figures ? figures.promptTokens + (figures.completionTokens ?? 0) : null;
}

/** The place of a search in a conversation: a piece of text around it, '' for the title, or null. */
export function search(conversation, words) {
  const sought = words.trim().toLowerCase();
  if (conversation.title.toLowerCase().includes(sought)) return '';
  for (const { content } of conversation.messages) {
    const place = content.toLowerCase().indexOf(sought);
    if (place >= 0) {
      const begin = Math.max(0, place - 24);
      return (begin ? '…' : '') + content.slice(begin, place + sought.length + 40).replace(/\s+/g, ' ');
    }
  }
  return null;
}

// Answers under way: at most one for each conversation, which goes on while another is shown.
// In: a conversation and the message to fill. Out: the message filled piece by piece, and what is
// going on. A model that loads, or a full queue, is waited for; stop() ends it and keeps the text.

import * as api from './api.js';
import { modelMessages } from './conversation.js';
import { modelNamed, refresh } from './model_list.js';
import { requestSettings } from './sampling.js';
import { session } from './session.js';

const SHOW_EVERY = 33;
const STORE_EVERY = 1000;
const WAIT_SECONDS = 2;
const LOOK_AGAIN = 200;

const underWay = new Map();

// A request waits while its model loads: the list of models knows.
session.addEventListener('models', () => {
  for (const work of underWay.values()) {
    const isLoading = work.phase === 'waiting' && modelNamed(work.conversation.model)?.state === 'loading';
    if (isLoading && !work.note) {
      work.note = `Loading ${work.conversation.model}`;
      session.changed(work.conversation, false);
    }
  }
});

/** What goes on in a conversation: {message, phase, note, progress, speed}, or undefined. */
export const answerOf = (conversation) => underWay.get(conversation.id);

export const stop = (conversation) => underWay.get(conversation.id)?.controller.abort();

/** Fill `message`, an assistant's; with `continuing` its text is the beginning of the answer. */
export async function answer(conversation, message, continuing = false) {
  if (underWay.has(conversation.id)) return;
  const last = continuing ? message : conversation.messages.find((each) => each.id === message.parent);
  conversation.model ??= modelNamed(null)?.id ?? null;
  const work = { conversation, message, phase: 'waiting', note: '', progress: null, speed: null, controller: new AbortController(), begin: performance.now(), stored: performance.now(), timer: null };
  underWay.set(conversation.id, work);
  session.busy.add(conversation.id);
  Object.assign(message, { ending: null, error: null, model: conversation.model });
  session.changed(conversation);
  setTimeout(refresh, LOOK_AGAIN);
  try {
    await receive(conversation, work, requestOf(conversation, last, continuing));
  } catch (error) {
    if (error.name === 'AbortError') message.ending = 'stopped';
    else Object.assign(message, { ending: 'error', error: error.message });
  }
  finish(work);
  underWay.delete(conversation.id);
  session.busy.delete(conversation.id);
  session.changed(conversation);
  session.dispatchEvent(new CustomEvent('answered', { detail: { conversation, message } }));
}

function requestOf(conversation, last, continuing) {
  return {
    ...(conversation.model ? { model: conversation.model } : {}),
    messages: modelMessages(conversation, last),
    ...requestSettings(conversation.settings),
    ...(continuing ? { continue_final_message: true, add_generation_prompt: false } : {}),
    return_progress: true,
  };
}

async function receive(conversation, work, request) {
  for (;;) {
    try {
      for await (const piece of api.chat(request, work.controller.signal)) {
        take(work, piece);
        tell(work);
      }
      if (!work.message.ending) throw new api.Refusal('The answer broke off: the server ended the connection.');
      return;
    } catch (error) {
      if (error.status !== 503) throw error;
      Object.assign(work, { phase: 'waiting', note: error.message });
      session.changed(conversation, false);
      await pause(error.waitSeconds ?? WAIT_SECONDS, work.controller.signal);
    }
  }
}

/** Show what came, some times a second however fast it comes, and keep it once a second. */
function tell(work) {
  work.timer ??= setTimeout(() => {
    work.timer = null;
    const now = performance.now();
    const store = now - work.stored > STORE_EVERY;
    if (store) work.stored = now;
    if (underWay.get(work.conversation.id) === work) session.changed(work.conversation, store);
  }, SHOW_EVERY);
}

function take(work, piece) {
  const { message } = work;
  if (piece.progress) Object.assign(work, { phase: 'reading', progress: piece.progress });
  if (piece.thinking) {
    work.thinkingBegin ??= performance.now();
    work.phase = 'thinking';
    message.thinking = (message.thinking ?? '') + piece.thinking;
  }
  if (piece.text || piece.calls.length) {
    if (work.phase === 'thinking') endThinking(work);
    work.phase = 'writing';
    message.content += piece.text;
    for (const call of piece.calls) takeCall(message, call);
  }
  if (piece.ending) message.ending = piece.ending;
  if (piece.usage?.completion_tokens) takeUsage(work, piece.usage);
  if (piece.timings) work.speed = piece.timings.predicted_per_second;
}

/** Counts so far; the speed is that of the tokens after the first that were told. */
function takeUsage(work, { prompt_tokens: promptTokens, completion_tokens: completionTokens }) {
  const now = performance.now();
  work.first ??= { time: now, tokens: completionTokens };
  const tokens = completionTokens - work.first.tokens;
  if (tokens && !work.message.ending) work.speed = (1000 * tokens) / (now - work.first.time);
  work.message.figures = { ...work.message.figures, promptTokens, completionTokens };
}

function takeCall(message, { index, id, function: called }) {
  message.calls ??= [];
  const call = (message.calls[index] ??= { id: '', name: '', arguments: '' });
  if (id) call.id = id;
  call.name += called?.name ?? '';
  call.arguments += called?.arguments ?? '';
}

function endThinking(work) {
  const seconds = (performance.now() - work.thinkingBegin) / 1000;
  work.message.figures = { ...work.message.figures, thinkingSeconds: seconds };
}

function finish(work) {
  const { message } = work;
  if (work.phase === 'thinking') endThinking(work);
  const figures = { ...message.figures, seconds: (performance.now() - work.begin) / 1000 };
  if (work.speed) figures.tokensPerSecond = work.speed;
  message.figures = figures;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stopped = () => { clearTimeout(timer); reject(new DOMException('stopped', 'AbortError')); };
    const timer = setTimeout(() => { signal.removeEventListener('abort', stopped); resolve(); }, 1000 * seconds);
    if (signal.aborted) stopped();
    else signal.addEventListener('abort', stopped, { once: true });
  });
}

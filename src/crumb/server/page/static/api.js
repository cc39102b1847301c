// All that the page asks of its server: models, their cards, loading, chats, markdown as HTML.
// In: plain values. Out: plain values; a failure is a Refusal with what the server said.
// Nothing is asked of any other host. The API key, where one is needed, is in every request.

import { eventData } from './events.js';
import { preference } from './preferences.js';

/** An answer that is an error: its message, HTTP status, code, seconds to wait. */
export class Refusal extends Error {
  constructor(message, status = 0, code = null, waitSeconds = null) {
    super(message);
    Object.assign(this, { status, code, waitSeconds });
  }
}

const key = () => preference('key');

async function ask(path, body, options = {}) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let answer;
  try {
    answer = await fetch(new URL(path, document.baseURI), {
      method: body === undefined ? 'GET' : 'POST',
      body: body === undefined ? undefined : JSON.stringify(body),
      headers,
      credentials: 'omit',
      cache: 'no-store',
      ...options,
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Refusal('The server does not answer. Is it still running?');
  }
  if (!answer.ok) throw await refusalOf(answer);
  return answer;
}

async function refusalOf(answer) {
  let error = null;
  try {
    error = (await answer.json()).error;
  } catch {
    // a proxy's page, say: the status must do
  }
  const message = (typeof error === 'string' ? error : error?.message) || `The server answered ${answer.status}.`;
  const wait = Number(answer.headers.get('retry-after'));
  return new Refusal(message, answer.status, error?.code ?? null, wait > 0 ? wait : null);
}

const json = async (path, body) => (await ask(path, body)).json();

/** [{id, state, fileBytes, bitsPerWeight, contextTokens, parameters}], as the server lists them. */
export async function models() {
  const { data } = await json('v1/models');
  return data.map(({ id, crumb }) => ({
    id,
    state: crumb.state,
    failure: crumb.error,
    fileBytes: crumb.size_bytes,
    bitsPerWeight: crumb.bits_per_weight,
    contextTokens: crumb.context_tokens,
    parameters: crumb.parameters,
    memoryBytes: crumb.memory_bytes,
  }));
}

export const card = (model) => json(`page/card?model=${encodeURIComponent(model)}`);
export const load = (model) => json('v1/models/load', { model });
export const unload = (model) => json('v1/models/unload', { model });

/** Blocks of each text: [{line, html}]. `growing`: more of the last text follows. */
export async function render(texts, growing = false) {
  return (await json('page/render', { texts, growing })).texts;
}

/** The pieces of an answer, as they come. Raises: Refusal, or AbortError once the signal says so. */
export async function* chat(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const answer = await ask('v1/chat/completions', body, { signal });
  for await (const data of eventData(answer.body)) {
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal(chunk.error.message ?? String(chunk.error), 200, chunk.error.code ?? null);
    yield pieceOf(chunk);
  }
}

function pieceOf(chunk) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  return {
    text: delta.content ?? '',
    thinking: delta.reasoning_content ?? delta.reasoning ?? '',
    calls: delta.tool_calls ?? [],
    ending: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
    timings: chunk.timings ?? null,
    progress: chunk.prompt_progress ?? null,
  };
}

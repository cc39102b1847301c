// Settings of a conversation that go into a request. A setting that is not there is the server's.
// In: a conversation's settings. Out: rows for the form, and fields of a request.

/** One row for each number: what the form asks and the field of the request. */
export const NUMBERS = [
  { name: 'temperature', label: 'Temperature', min: 0, max: 5, step: 0.05 },
  { name: 'top_p', label: 'Top p', min: 0, max: 1, step: 0.01 },
  { name: 'top_k', label: 'Top k', min: 0, max: 1000000, step: 1 },
  { name: 'min_p', label: 'Min p', min: 0, max: 1, step: 0.01 },
  { name: 'repetition_penalty', label: 'Repetition penalty', min: 0.01, max: 10, step: 0.01 },
  { name: 'frequency_penalty', label: 'Frequency penalty', min: -2, max: 2, step: 0.05 },
  { name: 'presence_penalty', label: 'Presence penalty', min: -2, max: 2, step: 0.05 },
  { name: 'max_tokens', label: 'Most tokens', min: 1, max: 10000000, step: 1 },
  { name: 'seed', label: 'Seed', min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
];

export const SERVER_DEFAULT = 'server default';

/** Tools of a JSON text; [] for none. Raises: Error with one line. */
export function toolsOf(text) {
  if (!text?.trim()) return [];
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`Not JSON: ${error.message}`);
  }
  const isTool = (tool) => tool?.type === 'function' && typeof tool.function?.name === 'string';
  if (!Array.isArray(tools) || !tools.every(isTool)) throw new Error('Expected an array of {"type": "function", "function": {"name": …}}.');
  return tools;
}

/** Fields of a request; what is not set is left out. */
export function requestSettings(settings) {
  const fields = {};
  for (const { name } of NUMBERS) if (typeof settings[name] === 'number') fields[name] = settings[name];
  if (typeof settings.thinking === 'boolean') fields.chat_template_kwargs = { enable_thinking: settings.thinking };
  const tools = safeTools(settings.tools);
  if (tools.length) fields.tools = tools;
  return fields;
}

function safeTools(text) {
  try {
    return toolsOf(text);
  } catch {
    return [];
  }
}

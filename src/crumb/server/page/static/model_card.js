// The card of a model: bytes, a strip of bits for each layer, measured KL, memory now and at peak.
// In: a model of the list. Out: its card, as the server tells it. What was not measured says so.

import * as api from './api.js';
import { drawing, element, part } from './dom.js';
import * as figures from './figures.js';

const STRIP = { width: 600, height: 72, most: 16 };
let asked = null;

/** Fill the card's place. */
export async function showCard(model) {
  const place = part('card');
  asked = model?.id ?? null;
  if (!model) return place.replaceChildren();
  let answer;
  try {
    answer = await api.card(model.id);
  } catch (error) {
    if (asked === model.id) place.replaceChildren(element('p', { class: 'muted', text: error.message }));
    return undefined;
  }
  if (asked !== model.id) return undefined;
  const { card, memory } = answer;
  return place.replaceChildren(
    element('h3', { text: model.id }),
    facts([
      ['Family', card.family],
      ['Parameters', figures.parameters(card.parameters)],
      ['File', `${figures.bytes(card.file_bytes)}, ${figures.bits(card.bits_per_weight)} per weight`],
      ['KL from the float model', divergence(card.measured)],
      ['Made by', [card.method, card.calibration].filter(Boolean).join(', calibrated on ')],
      ['Memory once loaded', model.memoryBytes && figures.bytes(model.memoryBytes)],
      ['Memory of the server', `${figures.bytes(memory.now_bytes)} now, ${figures.bytes(memory.peak_bytes)} at peak`],
    ]),
    strip(card.stages),
  );
}

function facts(rows) {
  return element('dl', {}, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [element('dt', { text: name }), element('dd', { text: value })]));
}

function divergence(measured) {
  if (!measured) return 'not measured for this file';
  return `${figures.withError(measured.kl, measured.kl_standard_error)} nats, on ${measured.text}`;
}

/** Bars, one a stage, as high as its bits; the words say the same to those who do not see them. */
function strip(stages) {
  const bits = stages.map((stage) => stage.bits_per_weight);
  const most = Math.min(STRIP.most, Math.max(...bits));
  const least = Math.min(...bits);
  const words = `Bits per weight of ${stages.length} layers, from ${figures.bits(least)} to ${figures.bits(Math.max(...bits))}`;
  const picture = drawing('svg', { viewBox: `0 0 ${STRIP.width} ${STRIP.height}`, role: 'img', 'aria-label': words, class: 'strip', preserveAspectRatio: 'none' });
  const step = STRIP.width / stages.length;
  stages.forEach((stage, index) => {
    const height = Math.max(2, (STRIP.height * Math.min(stage.bits_per_weight, most)) / most);
    const bar = drawing('rect', { x: index * step + step * 0.1, width: step * 0.8, y: STRIP.height - height, height, rx: Math.min(2, step / 6) });
    const title = drawing('title', {});
    title.textContent = `${stage.name}: ${figures.bits(stage.bits_per_weight)}, ${stage.formats.join(', ')}`;
    bar.append(title);
    picture.append(bar);
  });
  return element('figure', { class: 'bits' }, element('figcaption', { text: words }), picture,
    element('div', { class: 'ends muted', 'aria-hidden': 'true' }, element('span', { text: stages[0].name }), element('span', { text: stages.at(-1).name })));
}

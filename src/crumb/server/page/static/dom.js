// Elements from a name, properties and children; icons by name; the page's own parts by id.
// Text is always text here: HTML enters the page in rendered_text.js alone.

const SVG = 'http://www.w3.org/2000/svg';

/** Paths of each icon on a grid of 20 by 20, drawn as lines. */
const ICONS = {
  bin: 'M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6',
  check: 'M4.5 10.5l3.5 3.5 7.5-8',
  close: 'M5 5l10 10M15 5L5 15',
  copy: 'M8 7h7.5v9H8zM5 13V4h7.5',
  down: 'M10 4v12M5 11l5 5 5-5',
  edit: 'M4 16l.8-3.4L13 4.4l2.6 2.6-8.2 8.2L4 16z',
  forward: 'M4 10h11M11 6l4 4-4 4',
  in: 'M10 3v9M6.5 8.5L10 12l3.5-3.5M4 16h12',
  left: 'M12 5l-5 5 5 5',
  menu: 'M3.5 6h13M3.5 10h13M3.5 14h8',
  out: 'M10 12V3M6.5 6.5L10 3l3.5 3.5M4 16h12',
  plus: 'M10 4v12M4 10h12',
  redo: 'M15.5 10a5.5 5.5 0 1 1-1.7-4M15.5 3v3.4h-3.4',
  right: 'M8 5l5 5-5 5',
  sliders: 'M4 6h5M13 6h3M11 4.2v3.6M4 14h3M11 14h5M9 12.2v3.6',
  stop: 'M6 6h8v8H6z',
  up: 'M10 16V4M5 9l5-5 5 5',
};

export const part = (id) => document.getElementById(id);

/** An element; keys of properties are attributes, "on…" listeners, or class, text, data-icon. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === 'text') made.textContent = value;
    else if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  if (made.dataset.icon) made.prepend(icon(made.dataset.icon));
  return made;
}

/** A button that an icon or a word names. */
export function button(label, properties = {}, ...children) {
  const named = properties['data-icon'] && !children.length;
  const words = named ? { 'aria-label': label, title: label } : {};
  return element('button', { type: 'button', ...words, ...properties }, ...(named ? [] : children.length ? children : [label]));
}

export function drawing(name, properties) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  return made;
}

export function icon(name) {
  const made = drawing('svg', { viewBox: '0 0 20 20', 'aria-hidden': 'true', class: `icon-${name}` });
  made.append(drawing('path', { d: ICONS[name] }));
  return made;
}

/** Draw the icons that the page's own HTML asks for. */
export function drawIcons() {
  for (const each of document.querySelectorAll('[data-icon]')) {
    if (!each.querySelector('svg')) each.prepend(icon(each.dataset.icon));
    if (each.ariaLabel && !each.title) each.title = each.ariaLabel;
  }
}

/** Copy a text; true where the browser let us. Without a secure context an old way is tried. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = element('textarea', { class: 'unseen', 'aria-hidden': 'true' });
    const before = document.activeElement;
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand('copy');
    field.remove();
    before?.focus();
    return done;
  }
}

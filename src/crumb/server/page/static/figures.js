// Numbers as people read them. In: bytes, tokens, counts, seconds. Out: short texts.

const whole = new Intl.NumberFormat('en');
const fixed = (value, digits) => value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const count = (value) => whole.format(value);

/** 91.9 MB: three figures, powers of 1000. */
export function bytes(value) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  let power = 0;
  while (value >= 999.5 && power < units.length - 1) [value, power] = [value / 1000, power + 1];
  return power ? `${fixed(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${units[power]}` : `${value} bytes`;
}

/** 135 M: parameters of a model. */
export function parameters(value) {
  const [divisor, unit] = value >= 9.995e8 ? [1e9, 'B'] : [1e6, 'M'];
  return `${fixed(value / divisor, value / divisor < 9.95 ? 1 : 0)} ${unit}`;
}

export const bits = (value) => `${fixed(value, 2)} bits`;

export const speed = (value) => `${fixed(value, value < 9.95 ? 1 : 0)} tokens/s`;

export function seconds(value) {
  if (value < 60) return `${fixed(value, value < 9.95 ? 1 : 0)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** A figure with its error: .0123 ± .0004. */
export function withError(value, error) {
  const digits = error ? Math.min(6, Math.max(2, 1 - Math.floor(Math.log10(error)))) : 4;
  return fixed(value, digits) + (error ? ` ± ${fixed(error, digits)}` : '');
}

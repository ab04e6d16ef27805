// What the browser remembers: language, demo name, the attempt at each sale, recent orders. Shared by all tabs.

const PREFIX = 'floodgate.';
const ORDERS_MAX = 20;
const memory = new Map();

// Private windows may forbid storage: then a reload forgets, and nothing else changes.
function read(key) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key));
  } catch {
    return memory.get(key) ?? null;
  }
}

function write(key, value) {
  memory.set(key, value);
  try {
    if (value === null) localStorage.removeItem(PREFIX + key);
    else localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // Kept in memory above.
  }
}

export const language = () => read('language');
export const rememberLanguage = (value) => write('language', value);

/** A made-up user for the demo login; the same in every tab. */
export function demoUser() {
  const remembered = read('user');
  if (typeof remembered === 'string') return remembered;
  const bytes = crypto.getRandomValues(new Uint8Array(5));
  const name = `guest-${Array.from(bytes, (byte) => byte.toString(36).padStart(2, '0')).join('')}`;
  write('user', name);
  return name;
}

/**
 * The attempt at a sale: `{ pass, order_id, expires_at_ms, quantity, sale_version?, pressed_at_ms?, accepted? }`.
 * A reload or another tab goes on from it.
 */
export const attempt = (sale) => read(`attempt.${sale}`);
export const rememberAttempt = (sale, value) => write(`attempt.${sale}`, value);
export const forgetAttempt = (sale) => write(`attempt.${sale}`, null);

/** Calls back when another tab changed the attempt at this sale. */
export function onAttempt(sale, changed) {
  addEventListener('storage', (event) => event.key === `${PREFIX}attempt.${sale}` && changed());
}

/** Newest first: `{ order_id, sale, pass }`. */
export const orders = () => (Array.isArray(read('orders')) ? read('orders') : []);

export function rememberOrder(order) {
  const others = orders().filter((known) => known.order_id !== order.order_id);
  write('orders', [order, ...others].slice(0, ORDERS_MAX));
}

export const passOf = (orderId) => orders().find((known) => known.order_id === orderId)?.pass;

// The server's time, estimated from several samples. The device's own clock is believed only where the server says nothing.
// A page of one sale goes by that sale's clock.

import { call, pause } from './api.js';

const SAMPLES = 5;
const RESYNC_MS = 5 * 60_000;
/** Without any answer for so long the device's clock must do. */
const SETTLE_MAX_MS = 4_000;

let offset = Date.now() - performance.now();
let error = Infinity;
let settled = false;
let syncing = null;
let path = '/api/v1/time';
const listeners = new Set();

/** Server time, milliseconds since the Unix epoch. */
export const now = () => performance.now() + offset;

/** Whether the estimate is worth showing: a button must not light by a device's wrong clock. */
export const isSettled = () => settled;

const changed = () => {
  settled = true;
  for (const listener of listeners) listener();
};

/** Called whenever the estimate has changed. */
export const onSync = (listener) => listeners.add(listener);

/** Takes the sample with the shortest way: it is wrong by half of its way at most. */
function sync() {
  syncing ??= (async () => {
    error = Infinity;
    for (let sample = 0; sample < SAMPLES; sample++) {
      try {
        const sent = performance.now();
        const { data } = await call('GET', path, { timeoutMs: 4000 });
        const received = performance.now();
        const at = typeof data.now === 'number' ? data.now : Date.parse(data.now);
        if (Number.isFinite(at) && received - sent < error) {
          error = received - sent;
          offset = at - (sent + received) / 2;
          changed();
        }
        await pause(120);
      } catch {
        await pause(500);
      }
    }
    syncing = null;
  })();
  return syncing;
}

/** Keeps the estimate fresh: a sleeping device stops its monotonic clock, so a waking tab asks anew. `sale` is whose clock counts. */
export function keepInStep(sale) {
  if (sale) path += `?sale=${encodeURIComponent(sale)}`;
  let apart = Date.now() - performance.now();
  setInterval(() => {
    const moved = Math.abs(Date.now() - performance.now() - apart);
    apart = Date.now() - performance.now();
    if (moved > 500) sync();
  }, 1000);
  setInterval(sync, RESYNC_MS);
  document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && sync());
  addEventListener('online', sync);
  setTimeout(() => settled || changed(), SETTLE_MAX_MS);
  addEventListener('pageshow', (event) => event.persisted && sync());
  return sync();
}

// Follows one order until nothing more can happen to it: the event stream first, polling where there is none.

import { Refusal, call, events, jittered, pause, untilOnline } from './api.js';

const FINAL = new Set(['closed', 'refunded', 'rejected']);
const POLL_MIN_MS = 500;
const POLL_MAX_MS = 15_000;
/** An id the server has not heard of may still be under way for so long (a ledger batch's deadline, and some). */
const UNKNOWN_MAX = 4;

const isSeen = () => document.visibilityState === 'visible';

/** Ends with `signal` or when the tab is hidden: a browser has six connections to a host, and a buyer may have more tabs than that. */
function whileSeen(signal) {
  const stop = new AbortController();
  const end = () => {
    stop.abort();
    document.removeEventListener('visibilitychange', hidden);
    signal?.removeEventListener('abort', end);
  };
  const hidden = () => isSeen() || end();
  document.addEventListener('visibilitychange', hidden);
  signal?.addEventListener('abort', end);
  return { signal: stop.signal, end };
}

/** Waits until the tab is looked at, at most so long. */
async function untilSeen(maxMs, signal) {
  const woken = new AbortController();
  const wake = () => woken.abort();
  document.addEventListener('visibilitychange', wake, { once: true });
  signal?.addEventListener('abort', wake, { once: true });
  await pause(maxMs, woken.signal).catch(() => {});
  document.removeEventListener('visibilitychange', wake);
  signal?.removeEventListener('abort', wake);
  if (signal?.aborted) throw new DOMException('stopped', 'AbortError');
}

/**
 * Calls `changed(order)` with every state seen and `trouble(error | null)` when the server stops or resumes answering. Resolves to
 * the final state; rejects with a Refusal that says there is no such order (404) or no right to see it (401).
 */
export async function follow(orderId, pass, { changed, trouble, signal }) {
  const path = `/api/v1/orders/${encodeURIComponent(orderId)}`;
  let wait = POLL_MIN_MS;
  let streams = true;
  let unknown = 0;
  for (let last = ''; ; ) {
    let order;
    try {
      ({ data: order } = await call('GET', path, { pass, signal }));
      trouble(null);
      unknown = 0;
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      if (error instanceof Refusal && (error.status === 401 || (error.status === 404 && ++unknown >= UNKNOWN_MAX))) throw error;
      if (!(error instanceof Refusal && error.status === 404)) trouble(error);
      await untilOnline(jittered(Math.max(wait, error.retryAfterMs ?? 0)), signal);
      wait = Math.min(wait * 2, POLL_MAX_MS);
      continue;
    }
    changed(order);
    if (FINAL.has(order.status)) return order;
    wait = order.status === last ? Math.min(wait * 1.5, POLL_MAX_MS) : Math.max(POLL_MIN_MS, order.poll_after_ms ?? POLL_MIN_MS);
    last = order.status;
    if (streams && isSeen()) {
      const seeing = whileSeen(signal);
      try {
        for await (const seen of events(`${path}/events`, { pass, signal: seeing.signal })) {
          if (!seen?.status) continue;
          order = { ...order, ...seen };
          changed(order);
          last = order.status;
          wait = POLL_MIN_MS;
          if (FINAL.has(order.status)) return order;
        }
      } catch (error) {
        if (signal?.aborted) throw error;
        // No such call there, or not for us: poll from now on. A stream that broke is opened again after the next poll.
        if (error instanceof Refusal && error.status < 500 && error.status !== 429) streams = false;
      } finally {
        seeing.end();
      }
    }
    await (isSeen() ? pause(jittered(wait), signal) : untilSeen(POLL_MAX_MS, signal));
  }
}

// One way to call the server: an answer, a refusal with its word, or no answer. Nothing here retries.

/** The server said no. `word` is the last part of the problem's type. */
export class Refusal extends Error {
  constructor(status, word, body, retryAfterMs) {
    super(word);
    Object.assign(this, { status, word, body, retryAfterMs });
  }
}

/** Nothing came back, or something that is not ours: what was asked may still have happened. */
export class NoAnswer extends Error {}

const headers = (pass, json, token) => ({
  Accept: 'application/json',
  ...(token ? { Authorization: `Bearer ${token}` } : {}),
  ...(json ? { 'Content-Type': 'application/json' } : {}),
  ...(pass ? { 'Floodgate-Pass': pass } : {}),
});

/** Resolves to `{ status, data }`. The user's cookie goes along by itself. */
export async function call(method, path, { body, pass, token, timeoutMs = 8000, signal } = {}) {
  const giveUp = new AbortController();
  const abort = () => giveUp.abort();
  const timer = setTimeout(abort, timeoutMs);
  signal?.addEventListener('abort', abort);
  try {
    const json = body === undefined ? undefined : JSON.stringify(body);
    const response = await fetch(path, { method, body: json, headers: headers(pass, json, token), credentials: 'same-origin', signal: giveUp.signal });
    const text = await response.text();
    let data;
    try {
      data = text ? JSON.parse(text) : {};
    } catch {
      data = null;
    }
    if (response.ok && data !== null) return { status: response.status, data };
    const word = String(data?.type ?? '').split(/[/#:]/).pop();
    // An edge's own 502 or 504 says nothing of what became of a purchase.
    if (!word && response.status >= 500) throw new NoAnswer(String(response.status));
    throw new Refusal(response.status, word || (response.status === 410 ? 'sold-out' : String(response.status)), data ?? {}, retryAfter(response.headers.get('Retry-After')));
  } catch (error) {
    if (signal?.aborted) throw new DOMException('stopped', 'AbortError');
    if (error instanceof Refusal || error instanceof NoAnswer) throw error;
    throw new NoAnswer(String(error));
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  }
}

const retryAfter = (value) => (/^\d+$/.test(value ?? '') ? Number(value) * 1000 : undefined);

/** Waits, or rejects when stopped. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException('stopped', 'AbortError'));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener('abort', stop, { once: true });
  });
}

/** Spreads what many tabs would do at the same instant: up to half as much again. */
export const jittered = (ms) => ms * (1 + Math.random() / 2);

/** Waits for the network, at most as long as given: the browser's own idea of being online is often wrong. */
export async function untilOnline(maxMs, signal) {
  if (navigator.onLine) return pause(maxMs, signal);
  const back = new AbortController();
  const wake = () => back.abort();
  addEventListener('online', wake, { once: true });
  signal?.addEventListener('abort', wake, { once: true });
  await pause(30_000, back.signal).catch(() => {});
  removeEventListener('online', wake);
  if (signal?.aborted) throw new DOMException('stopped', 'AbortError');
}

/** Server-sent events over fetch, so that the pass can go along. Yields each event's parsed data. */
export async function* events(path, { pass, silentMaxMs = 45_000, signal } = {}) {
  const giveUp = new AbortController();
  const abort = () => giveUp.abort();
  signal?.addEventListener('abort', abort);
  let silence = setTimeout(abort, silentMaxMs);
  try {
    const response = await fetch(path, { headers: { ...headers(pass), Accept: 'text/event-stream' }, credentials: 'same-origin', signal: giveUp.signal });
    if (!response.ok || !/^text\/event-stream/.test(response.headers.get('Content-Type') ?? '')) {
      throw new Refusal(response.status, 'no-stream', {}, undefined);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffered = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(abort, silentMaxMs);
      buffered += value.replace(/\r\n?/g, '\n');
      for (let end; (end = buffered.indexOf('\n\n')) >= 0; buffered = buffered.slice(end + 2)) {
        const data = buffered.slice(0, end).split('\n').filter((line) => line.startsWith('data:')).map((line) => line.slice(5).trimStart());
        if (data.length) yield JSON.parse(data.join('\n'));
      }
    }
  } finally {
    clearTimeout(silence);
    signal?.removeEventListener('abort', abort);
    abort();
  }
}

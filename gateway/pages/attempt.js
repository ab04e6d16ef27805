// One buyer's attempt at one sale: answer → pass → press → order, over lost answers, reloads and other tabs. Knows no page.
//
// A pass names the one order that it can become, so pressing again with the same pass is always safe, and so is asking for that order.
// What was pressed is remembered before it is sent. A refusal is believed only once no earlier press of this pass can still
// be under way unheard.

import { NoAnswer, Refusal, call, jittered, pause, untilOnline } from './api.js';
import { now } from './clock.js';
import * as store from './store.js';

/** How long a press goes on by itself while the server is too busy. */
const PRESS_MAX_MS = 45_000;
/** After so long an unanswered press has either taken its units or never will (design: a batch lives 1 s at most). */
const UNSURE_MS = 1_500;
/** A reload later than this does not press again by itself. */
const RESUME_MAX_MS = 120_000;
/** Orders that hold nothing any more. */
const OVER = new Set(['closed', 'refunded', 'rejected']);
/** Refusals that a moment may cure, with the same pass. */
const PASSING = new Set(['busy', 'slow-down', 'gate-full', 'uncertain', '429', '503']);

export class Attempt {
  #sale;
  #changed;
  #ask;
  #login;
  #running = null;

  /**
   * `changed()` after every change; `ask(signal)` resolves to `{ pass, order_id, expires_at }` once the buyer has answered;
   * `login()` resolves to whether there is a user now.
   */
  constructor(saleId, { changed, ask, login }) {
    this.#sale = saleId;
    this.#changed = changed;
    this.#ask = ask;
    this.#login = login;
    /** idle, asking, sending, busy, unsure, offline, ordered */
    this.state = 'idle';
    /** The last refusal, until the next try. */
    this.refusal = null;
    store.onAttempt(saleId, () => this.#fromAnotherTab());
  }

  get #kept() {
    return store.attempt(this.#sale);
  }

  /** The pass that still buys, or null. */
  get livePass() {
    const kept = this.#kept;
    return kept?.pass && !kept.accepted && kept.expires_at_ms > now() + 1000 ? kept : null;
  }

  /** `{ order_id, pass }` of the order that came out of it, or null. */
  get order() {
    return this.#kept?.accepted ? this.#kept : null;
  }

  /** After a load: goes on where the last visit stopped. */
  resume() {
    const kept = this.#kept;
    if (kept?.accepted) return this.#enter('ordered');
    if (kept?.pressed_at_ms && now() - kept.pressed_at_ms < RESUME_MAX_MS) return void this.#run((signal) => this.#settle(signal, kept.pressed_at_ms));
  }

  /** Answers the question ahead, so that one press is enough later. */
  prepare() {
    return this.#run(async (signal) => {
      await this.#pass(signal);
      this.#enter('idle');
    });
  }

  /** The button, under a sale of this version. Pressing again while under way changes nothing. */
  press(quantity, saleVersion) {
    return this.#run(async (signal) => {
      const kept = this.order ? null : await this.#pass(signal);
      if (!kept) return this.#enter('ordered');
      store.rememberAttempt(this.#sale, { ...kept, quantity, sale_version: saleVersion, pressed_at_ms: now() });
      await this.#send(signal, now(), 0);
    });
  }

  /** Goes to an order of the buyer's that this browser does not know of: it was bought on another device. */
  find() {
    return this.#run(async (signal) => {
      const look = (signal) => this.#goToOwn(signal, [], true);
      let found;
      try {
        found = await look(signal);
      } catch (error) {
        if (!(error instanceof Refusal && error.status === 401) || !(await this.#login())) throw error;
        found = await look(signal);
      }
      if (!found) throw new Refusal(404, 'no-own-order', {});
    });
  }

  /** Forgets this attempt's order: the next press is a new one. */
  forget() {
    store.forgetAttempt(this.#sale);
    this.refusal = null;
    this.#enter('idle');
  }

  #enter(state) {
    this.state = state;
    this.#changed();
  }

  async #run(steps) {
    if (this.#running) return;
    this.#running = new AbortController();
    this.refusal = null;
    try {
      await steps(this.#running.signal);
    } catch (error) {
      if (error instanceof Refusal) this.refusal = error;
      else if (error instanceof NoAnswer) this.refusal = new Refusal(0, 'noNetwork', {});
      else if (error.name !== 'AbortError') throw error;
      this.state = this.order ? 'ordered' : 'idle';
    } finally {
      this.#running = null;
      this.#changed();
    }
  }

  #fromAnotherTab() {
    const kept = this.#kept;
    // The other tab has the answer or the order already: whatever this one was asking for is no longer needed.
    if (this.#running && this.state === 'asking' && kept?.pass) this.#running.abort();
    if (kept?.accepted) this.state = 'ordered';
    else if (!this.#running) this.state = 'idle';
    this.#changed();
  }

  async #pass(signal) {
    if (this.livePass) return this.livePass;
    this.#enter('asking');
    let given;
    try {
      given = await this.#ask(signal);
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 401) || !(await this.#login())) throw error;
      given = await this.#ask(signal);
    }
    // Another tab may have been faster: one pass, one order.
    if (this.livePass) return this.livePass;
    const kept = { pass: given.pass, order_id: given.order_id, expires_at_ms: Date.parse(given.expires_at) };
    store.rememberAttempt(this.#sale, kept);
    return kept;
  }

  /** Presses until there is an answer. `unsureSince` is when the last unanswered press was sent, 0 where none was. */
  async #send(signal, since, unsureSince) {
    for (let round = 0; ; round++) {
      const kept = this.#kept;
      if (!kept?.pass) throw new DOMException('forgotten', 'AbortError');
      if (kept.accepted) return this.#enter('ordered');
      this.#enter(round ? this.state : 'sending');
      const sentAt = now();
      try {
        const body = { ...(kept.quantity > 1 ? { quantity: kept.quantity } : {}), ...(kept.sale_version ? { sale_version: kept.sale_version } : {}) };
        const { data } = await call('POST', `/api/v1/sales/${encodeURIComponent(this.#sale)}/orders`, { body, pass: kept.pass, signal });
        return this.#accepted(kept, data);
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        if (error instanceof NoAnswer || error.word === 'uncertain') {
          return this.#settle(signal, sentAt, since, error.retryAfterMs);
        }
        if (!(error instanceof Refusal)) throw error;
        if (error.word === 'not-started' && now() - since < PRESS_MAX_MS) {
          // Our clock was early by a moment.
          await pause(Math.min(error.retryAfterMs ?? 200, 200) + Math.random() * 100, signal);
        } else if (PASSING.has(error.word) && now() - since < PRESS_MAX_MS) {
          this.#enter('busy');
          await pause(jittered(Math.max(error.retryAfterMs ?? 0, Math.min(400 * 2 ** round, 5000))), signal);
        } else {
          if (unsureSince && (await this.#found(signal, unsureSince))) return;
          if (error.word === 'limit-reached' && (await this.#goToOwn(signal, error.body.order_ids ?? []))) return;
          return this.#refused(kept, error);
        }
      }
    }
  }

  /** No answer came: asks for the order, and presses again with the same pass only where there is none. */
  async #settle(signal, unsureSince, since = now(), firstWaitMs = 0) {
    await pause(Math.min(firstWaitMs, 5000), signal);
    for (let round = 0; ; round++) {
      this.#enter(navigator.onLine ? 'unsure' : 'offline');
      try {
        if (await this.#found(signal, unsureSince)) return;
        break;
      } catch (error) {
        if (error.name === 'AbortError') throw error;
        if (error instanceof Refusal && error.status === 401) throw error;
        this.#enter(navigator.onLine ? 'unsure' : 'offline');
        await untilOnline(jittered(Math.max(error.retryAfterMs ?? 0, Math.min(500 * 2 ** round, 8000))), signal);
      }
    }
    if (!this.livePass) return this.#enter('idle');
    await this.#send(signal, since, unsureSince);
  }

  /** Whether the pass has become an order. False is final for presses sent before `unsureSince`. */
  async #found(signal, unsureSince) {
    const kept = this.#kept;
    if (!kept?.pass) throw new DOMException('forgotten', 'AbortError');
    if (kept.accepted) {
      this.#enter('ordered');
      return true;
    }
    const ask = () => call('GET', `/api/v1/orders/${encodeURIComponent(kept.order_id)}`, { pass: kept.pass, signal });
    try {
      let answer;
      try {
        answer = await ask();
      } catch (error) {
        if (!(error instanceof Refusal && error.status === 404)) throw error;
        const rest = UNSURE_MS - (now() - unsureSince);
        if (rest <= 0) return false;
        await pause(rest, signal);
        answer = await ask();
      }
      this.#accepted(kept, answer.data);
      return true;
    } catch (error) {
      if (error instanceof Refusal && error.status === 404) return false;
      throw error;
    }
  }

  /**
   * To the buyer's own order: the one that waits for money, else the newest that is not over, as the server lists them; `named` are
   * those that a refusal named, newest first. Whether there is one.
   */
  async #goToOwn(signal, named, mustList = false) {
    let orders = [];
    try {
      ({ data: { orders } } = await call('GET', `/api/v1/orders?sale=${encodeURIComponent(this.#sale)}`, { signal }));
    } catch (error) {
      // The names of the refusal are enough.
      if (error.name === 'AbortError' || mustList) throw error;
    }
    const id = (orders.find((order) => order.status === 'unpaid') ?? orders.find((order) => !OVER.has(order.status)))?.order_id ?? named[0];
    if (!id) return false;
    store.rememberOrder({ order_id: id, sale: this.#sale });
    store.rememberAttempt(this.#sale, { order_id: id, accepted: true });
    this.refusal = null;
    this.#enter('ordered');
    return true;
  }

  #accepted(kept, order) {
    const orderId = order.order_id ?? kept.order_id;
    store.rememberOrder({ order_id: orderId, sale: this.#sale, pass: kept.pass });
    store.rememberAttempt(this.#sale, { ...kept, order_id: orderId, accepted: true });
    this.refusal = null;
    this.#enter('ordered');
  }

  #refused(kept, refusal) {
    if (refusal.word === 'pass-used' || refusal.word === 'pass-invalid') store.forgetAttempt(this.#sale);
    else store.rememberAttempt(this.#sale, { ...kept, pressed_at_ms: undefined });
    throw refusal;
  }
}

// One order as the buyer sees it: where it stands, how long that lasts, and the way out. Used by the sale's and the order's page.

import { Refusal, call } from './api.js';
import { now } from './clock.js';
import { login, make, say, words } from './page.js';
import { clockText, money, number, onLanguage, span, t } from './text.js';

const STEPS = ['stepQueued', 'stepUnpaid', 'stepPaid'];
const STEP_OF = { queued: 0, unpaid: 1, paid: 2, refunding: 2, refunded: 2 };
const HINTS = { queued: 'queuedHint', unpaid: 'unpaidHint', paid: 'paidHint', closed: 'closedHint', rejected: 'rejectedHint' };

export class Ticket {
  #root;
  #order = null;
  #seenAt = 0;
  #asking = false;
  #parts;

  /** `links` are elements shown below; `changed(order)` follows a cancel or a payment. */
  constructor(root, { links = [], changed = () => {} } = {}) {
    this.#root = root;
    const part = (tag, className) => make(tag, { className });
    const p = (this.#parts = {
      head: part('h2', 'ticket-head'), hint: part('p', 'ticket-hint'), steps: part('ol', 'steps'), big: part('p', 'ticket-big'), bigLabel: part('p', 'ticket-label'),
      list: part('dl', 'ticket-facts'), pay: make('button', { className: 'buy lit', type: 'button', id: 'pay' }), cancel: make('button', { className: 'quiet', type: 'button', id: 'cancel' }), confirm: part('div', 'confirm'), note: part('p', 'note'),
      yes: make('button', { className: 'danger', type: 'button', id: 'cancel-yes' }), no: make('button', { className: 'quiet', type: 'button', id: 'cancel-no' }), question: part('span', ''),
    });
    p.head.tabIndex = -1;
    p.note.setAttribute('role', 'status');
    p.steps.append(...STEPS.map(() => make('li')));
    p.confirm.append(p.question, p.yes, p.no);
    root.append(make('div', { className: 'ticket-top' }, p.head, p.hint, p.steps, p.big, p.bigLabel), make('div', { className: 'ticket-stub' }, p.list, p.note, p.pay, p.confirm, make('div', { className: 'actions' }, p.cancel, ...links)));
    p.pay.addEventListener('click', () => this.#pay(changed));
    p.cancel.addEventListener('click', () => this.#ask(true));
    p.no.addEventListener('click', () => this.#ask(false));
    p.yes.addEventListener('click', () => this.#cancel(changed));
    onLanguage(() => this.#draw());
  }

  get order() {
    return this.#order;
  }

  show(order) {
    const first = !this.#order;
    if (this.#order?.status !== order.status || this.#order?.position !== order.position) this.#seenAt = now();
    this.#order = order;
    this.#root.hidden = false;
    this.#draw();
    if (first) this.#parts.head.focus({ preventScroll: true });
  }

  hide() {
    this.#order = null;
    this.#asking = false;
    this.#parts.note.textContent = '';
    this.#root.hidden = true;
  }

  /** Moves what moves with time. */
  tick() {
    if (this.#order) this.#drawTime();
  }

  #draw() {
    const order = this.#order;
    if (!order) return;
    const p = this.#parts;
    this.#root.dataset.status = order.status;
    say(p.head, t(order.status));
    const hint = HINTS[order.status] ? t(HINTS[order.status]) : '';
    say(p.hint, order.status === 'unpaid' && order.demo ? t('unpaidDemo') : hint);
    const at = STEP_OF[order.status] ?? -1;
    p.steps.hidden = at < 0;
    [...p.steps.children].forEach((step, place) => {
      say(step, t(STEPS[place]));
      step.className = place < at ? 'done' : place === at ? 'here' : '';
      if (place === at) step.setAttribute('aria-current', 'step');
      else step.removeAttribute('aria-current');
    });
    const facts = [[t('order'), order.order_id, 'mono']];
    if (order.quantity) facts.push([t('quantity'), number(order.quantity), '']);
    if (order.amount !== undefined && order.currency) facts.push([t('amount'), money(order.amount, order.currency, order.currency_digits), '']);
    p.list.replaceChildren(...facts.map(([name, value, className]) => make('div', {}, make('dt', {}, name), make('dd', { className }, value))));
    // Only the demo can pay here: in a shop its own checkout does.
    p.pay.hidden = !(order.demo && order.status === 'unpaid');
    if (!p.pay.hidden) say(p.pay, t('pay', { amount: money(order.amount, order.currency, order.currency_digits) }));
    const cancellable = order.status === 'unpaid';
    p.cancel.hidden = !cancellable || this.#asking;
    p.confirm.hidden = !cancellable || !this.#asking;
    say(p.cancel, t('cancel'));
    say(p.question, t('cancelAsk'));
    say(p.yes, t('cancelYes'));
    say(p.no, t('cancelNo'));
    this.#drawTime();
  }

  #drawTime() {
    const order = this.#order;
    let big = '';
    let label = '';
    if (order.status === 'queued' && order.position !== undefined) {
      // Between two answers the queue is assumed to move as fast as it did.
      const share = order.eta_ms > 0 ? Math.min(1, (now() - this.#seenAt) / order.eta_ms) : 0;
      big = number(Math.ceil(order.position * (1 - share)));
      const left = (order.eta_ms ?? 0) * (1 - share);
      label = `${t('ahead')}${order.eta_ms === undefined ? '' : ` · ${left > 1000 ? t('eta', { time: span(left) }) : t('soon')}`}`;
    } else if (order.status === 'unpaid' && order.pay_by) {
      big = clockText(Date.parse(order.pay_by) - now());
      label = t('payBy');
    }
    for (const [element, text] of [[this.#parts.big, big], [this.#parts.bigLabel, label]]) {
      say(element, text);
      element.hidden = !text;
    }
  }

  #ask(asking) {
    this.#asking = asking;
    this.#draw();
    (asking ? this.#parts.no : this.#parts.cancel).focus();
  }

  /** A call that logs in first where that helps. */
  async #call(method, path, options) {
    try {
      return await call(method, path, options);
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 401 && (await login()))) throw error;
      return await call(method, path, options);
    }
  }

  #path() {
    return `/api/v1/orders/${encodeURIComponent(this.#order.order_id)}`;
  }

  async #pay(changed) {
    const { pay, note } = this.#parts;
    if (pay.ariaBusy === 'true') return;
    pay.ariaBusy = 'true';
    note.textContent = '';
    const { order_id: id, demo } = this.#order;
    try {
      await this.#call('POST', '/api/v1/demo/payments', { body: { order_id: id } });
      // What became of the order says the order: money that comes too late goes back.
      const { data } = await this.#call('GET', this.#path());
      if (this.#order?.order_id !== id) return;
      this.show({ ...this.#order, ...data, demo });
      this.#parts.head.focus({ preventScroll: true });
      changed(this.#order);
    } catch (error) {
      note.textContent = error instanceof Refusal ? (error.word === 'wrong-state' ? t('cannotPay') : words(error)) : t('noNetwork');
    } finally {
      pay.ariaBusy = 'false';
    }
  }

  async #cancel(changed) {
    const { yes, note } = this.#parts;
    if (yes.ariaBusy === 'true') return;
    yes.ariaBusy = 'true';
    note.textContent = '';
    try {
      const answer = await this.#call('POST', `${this.#path()}/cancel`, { body: {} });
      this.#asking = false;
      if (this.#order) this.show({ ...this.#order, ...(answer.data.status ? answer.data : { status: 'closed' }) });
      this.#parts.head.focus({ preventScroll: true });
      changed(this.#order);
    } catch (error) {
      this.#asking = false;
      this.#draw();
      note.textContent = error instanceof Refusal ? words(error) : t('noNetwork');
    } finally {
      yes.ariaBusy = 'false';
    }
  }
}

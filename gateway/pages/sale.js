// The sale's page: one sale from "not yet" to an order in hand. Draws; the protocol is attempt.js's.

import { Refusal, call, jittered } from './api.js';
import { Attempt } from './attempt.js';
import * as clock from './clock.js';
import { follow } from './follow.js';
import { $, login, make, say, start, words } from './page.js';
import { ask } from './question.js';
import { clockText, discount, moment, money, number, onLanguage, parts, span, t } from './text.js';
import { Ticket } from './ticket.js';

const saleId = decodeURIComponent(location.pathname.split('/')[2] ?? '');
/** The hint in the cached sale may be older than a refusal just heard. */
const REFUSAL_HOLDS_MS = 4_000;
/** Between two looks at the sale, by phase; a hidden tab looks as rarely as before the opening. */
const LOOK_MS = { upcoming: 20_000, prepare: 20_000, open: 6_000, soldout: 4_000, paused: 4_000, ended: 60_000 };
const LOOK_FAILED_MAX_MS = 20_000;
/** The countdown is drawn: whoever cannot see it hears these seconds. */
const ANNOUNCED_S = [60, 10];
/** How much earlier than the opening a quiet proof of work may start: spread over the window that the seller gave. */
const SPREAD = 0.7;

let sale = null;
let missing = false;
let quantity = 1;
let phase = '';
let soldOutHeardAt = -Infinity;
let following = null;
let lookTimer = 0;
let looksFailed = 0;

const toOrder = make('a', { className: 'button quiet', id: 'to-order' });
const buyAgain = make('button', { className: 'button', type: 'button', id: 'buy-again' });
const ticket = new Ticket($('ticket'), { links: [buyAgain, toOrder], changed: drawOrder });
const attempt = new Attempt(saleId, {
  login,
  changed: () => {
    if (attempt.refusal?.word === 'sold-out') soldOutHeardAt = clock.now();
    if (['paused', 'ended', 'sale-changed'].includes(attempt.refusal?.word)) look();
    draw();
  },
  ask: (signal) => ask(saleId, { signal, off: sale.challenge === 'off', quiet: clock.now() < startsAt() }),
});

const startsAt = () => Date.parse(sale.starts_at);
const endsAt = () => Date.parse(sale.ends_at);
const preparesAt = () => startsAt() - (sale.opens_before_s ?? 0) * 1000;

/** upcoming, prepare, open, soldout, paused, ended */
function phaseNow() {
  const at = clock.now();
  if (at >= endsAt()) return 'ended';
  if (sale.paused) return 'paused';
  if (at < startsAt()) return at >= preparesAt() && sale.opens_before_s > 0 ? 'prepare' : 'upcoming';
  if (sale.sold_out || at - soldOutHeardAt < REFUSAL_HOLDS_MS) return 'soldout';
  return 'open';
}

function draw() {
  if (missing) return drawMissing();
  if (!sale || !clock.isSettled()) return;
  showFacts(true);
  const before = phase;
  phase = phaseNow();
  document.body.dataset.phase = phase;
  document.title = `${phase === 'upcoming' || phase === 'prepare' ? `${clockText(startsAt() - clock.now())} · ` : ''}${sale.title || sale.id}`;
  say($('title'), sale.title || sale.id);
  say($('description'), sale.description ?? '');
  say($('price'), money(sale.price, sale.currency, sale.currency_digits));
  say($('list-price'), sale.list_price > sale.price ? money(sale.list_price, sale.currency, sale.currency_digits) : '');
  say($('discount'), discount(sale.price, sale.list_price));
  $('discount').hidden = !$('discount').textContent;
  $('rehearsal').hidden = !sale.rehearsal;
  $('demo').hidden = !sale.demo;
  say($('fact-units'), number(sale.total));
  say($('fact-limit'), number(sale.per_user_limit ?? 1));
  say($('fact-pay'), span((sale.pay_within_s ?? 900) * 1000));
  drawHero();
  drawOrder();
  drawButton();
  const left = Math.ceil((startsAt() - clock.now()) / 1000);
  if (ANNOUNCED_S.includes(left) && phase !== 'paused') say($('live'), t('announceLeft', { time: span(left * 1000) }));
  if (before && before !== phase) {
    if (phase === 'open') say($('live'), t(before === 'soldout' ? 'announceBack' : 'announceOpen'));
    else if (phase === 'soldout' || phase === 'paused' || phase === 'ended') say($('live'), t(phase === 'soldout' ? 'soldOut' : phase));
  }
  if (phase === 'prepare' && sale.challenge !== 'image') prepareQuietly();
}

function drawHero() {
  const left = (phase === 'open' || phase === 'soldout' || phase === 'paused' ? endsAt() : startsAt()) - clock.now();
  const { days, hours, minutes, seconds } = parts(startsAt() - clock.now());
  const two = (n) => String(n).padStart(2, '0');
  say($('days'), days ? t('days', { n: days }) : '');
  [['hh', hours], ['mm', minutes], ['ss', seconds]].forEach(([id, value]) => say($(id), two(value)));
  const closed = phase === 'soldout' || phase === 'paused' || phase === 'ended';
  $('digits').hidden = closed || phase === 'open';
  say($('leaf-label'), $('digits').hidden ? '' : t('opensIn'));
  say($('leaf-word'), closed ? t(phase === 'soldout' ? 'soldOut' : phase) : '');
  say($('verdict'), phase === 'open' ? t('openNow') : '');
  say($('verdict-time'), phase === 'open' ? t('endsIn', { time: clockText(left) }) : '');
  // The water rises over the last minute.
  $('hero').style.setProperty('--level', phase === 'open' ? 1 : Math.max(0, 1 - Math.max(0, startsAt() - clock.now()) / 60_000) * 0.75);
}

const UNDER_WAY = { asking: 'working', sending: 'sending', busy: 'sending', unsure: 'checking', offline: 'checking' };
const PHASE_HINT = { upcoming: 'hintUpcoming', prepare: 'hintPrepare', open: 'hintOpen', soldout: 'hintSoldOut', paused: 'hintPaused', ended: 'hintEnded' };
const PHASE_LABEL = { upcoming: 'notYet', prepare: 'prepare', open: 'buy', soldout: 'soldOut', paused: 'paused', ended: 'ended' };

function drawButton() {
  const button = $('buy');
  const ordered = attempt.state === 'ordered';
  $('action').hidden = ordered;
  document.body.toggleAttribute('data-ordered', ordered);
  if (ordered) return;
  const under = UNDER_WAY[attempt.state];
  const prepared = phase === 'prepare' && attempt.livePass;
  const quietly = phase === 'prepare' && sale.challenge !== 'image';
  const lit = !under && (phase === 'open' || (phase === 'prepare' && !prepared && !quietly));
  button.setAttribute('aria-disabled', String(!lit));
  button.classList.toggle('lit', lit);
  button.classList.toggle('busy', Boolean(under));
  say(button, t(under ?? (prepared ? 'prepared' : quietly ? 'notYet' : PHASE_LABEL[phase])));
  const hint = prepared ? 'hintPrepared' : quietly ? 'hintSolving' : PHASE_HINT[phase];
  const spoken = { busy: 'busy', unsure: 'unsure', offline: 'offline' }[attempt.state];
  say($('note'), spoken ? t(spoken) : attempt.refusal ? words(attempt.refusal) : '');
  say($('hint'), $('note').textContent ? '' : t(hint, { at: moment(startsAt()) }));
  // A press cannot find it any more.
  $('own').hidden = Boolean(under) || !(phase === 'soldout' || phase === 'ended');
  const most = sale.per_user_limit ?? 1;
  $('quantity-row').hidden = !(most > 1) || Boolean(under) || !['upcoming', 'prepare', 'open'].includes(phase);
  quantity = Math.min(quantity, most);
  say($('quantity'), number(quantity));
  $('less').disabled = quantity <= 1;
  $('more').disabled = quantity >= most;
}

function drawOrder() {
  const held = attempt.state === 'ordered' ? attempt.order : null;
  if (held && following?.id !== held.order_id) followOrder(held);
  if (!held && following) {
    following.stop.abort();
    following = null;
    ticket.hide();
  }
  const order = ticket.order;
  const over = order && ['closed', 'refunded', 'rejected'].includes(order.status);
  buyAgain.hidden = !(over && (phase === 'open' || phase === 'soldout'));
  buyAgain.textContent = t('buyAgain');
  toOrder.textContent = t('toOrder');
  toOrder.hidden = !order;
  if (order) toOrder.href = `/orders/${encodeURIComponent(order.order_id)}`;
}

async function followOrder({ order_id: id, pass }) {
  following?.stop.abort();
  const mine = (following = { id, stop: new AbortController() });
  const changed = (order) => {
    const before = ticket.order?.status;
    if (!before) scrollTo({ top: 0 });
    ticket.show({ sale: saleId, demo: sale.demo, ...order });
    // The first state is heard from the heading, which takes the focus.
    if (before !== order.status) say($('live'), before ? t(order.status) : '');
    drawOrder();
  };
  const trouble = (error) => {
    $('trouble').hidden = !error;
    if (error) say($('trouble'), t(navigator.onLine ? 'noNetwork' : 'offline'));
  };
  try {
    await follow(id, pass, { changed, trouble, signal: mine.stop.signal });
    look();
  } catch (error) {
    // The server has no such order: what was remembered is of another life of it.
    if (error instanceof Refusal) attempt.forget();
    else if (error.name !== 'AbortError') throw error;
  }
}

let quietTimer = 0;
function prepareQuietly() {
  if (quietTimer || attempt.livePass || attempt.state !== 'idle' || attempt.refusal) return;
  const window = startsAt() - clock.now();
  quietTimer = setTimeout(async () => {
    await attempt.prepare();
    quietTimer = 0;
    tick();
  }, Math.random() * window * SPREAD);
}

/** Where there is no sale: the way to others instead. */
function showFacts(shown) {
  $('facts').hidden = !shown;
  $('elsewhere').hidden = shown;
}

function drawMissing() {
  document.body.dataset.phase = 'missing';
  say($('title'), t('unknown-sale'));
  showFacts(false);
  $('action').hidden = true;
}

/** Reads the sale again: cheap, cached by every level on the way. */
async function look() {
  clearTimeout(lookTimer);
  try {
    ({ data: sale } = await call('GET', `/api/v1/sales/${encodeURIComponent(saleId)}`));
    missing = false;
    looksFailed = 0;
    $('trouble').hidden = true;
  } catch (error) {
    looksFailed++;
    missing = error instanceof Refusal && error.status === 404 && !sale;
    if (!missing && !sale) {
      $('trouble').hidden = false;
      say($('trouble'), t(navigator.onLine ? 'noNetwork' : 'offline'));
    }
  }
  draw();
  const calm = document.visibilityState === 'visible' && attempt.state !== 'ordered' ? (LOOK_MS[phase] ?? LOOK_MS.open) : LOOK_MS.upcoming;
  const wait = looksFailed ? Math.min(1000 * 2 ** looksFailed, LOOK_FAILED_MAX_MS) : calm;
  clearTimeout(lookTimer);
  lookTimer = setTimeout(look, jittered(wait));
}

/** Wakes at each full second that is left, and exactly at the opening. */
let tickTimer = 0;
function tick() {
  clearTimeout(tickTimer);
  draw();
  ticket.tick();
  const left = sale ? startsAt() - clock.now() : 0;
  tickTimer = setTimeout(tick, left > 0 ? Math.max(10, left % 1000 || 1000) : 500);
}

$('buy').addEventListener('click', () => {
  if ($('buy').getAttribute('aria-disabled') === 'true') return;
  if (phase === 'prepare') attempt.prepare().then(tick);
  else attempt.press(quantity, sale.version);
});
$('own').addEventListener('click', () => attempt.find());
$('less').addEventListener('click', () => { quantity--; draw(); });
$('more').addEventListener('click', () => { quantity++; draw(); });
buyAgain.addEventListener('click', () => {
  attempt.forget();
  draw();
  $('buy').focus();
});
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && sale && look());
addEventListener('online', () => sale && look());

start();
onLanguage(draw);
clock.onSync(tick);
clock.keepInStep(saleId);
await look();
if (sale) {
  // Ahead of the opening, so that the press is not the one that logs in.
  if (sale.demo) await login().catch(() => {});
  attempt.resume();
}
tick();

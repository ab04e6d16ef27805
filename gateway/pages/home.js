// The list of sales. One that can still be bought: straight to it.

import { call } from './api.js';
import * as clock from './clock.js';
import { $, make, say, start } from './page.js';
import * as store from './store.js';
import { clockText, discount, money, onLanguage, t } from './text.js';

let sales = null;

const at = (text) => Date.parse(text);

function state(sale) {
  const now = clock.now();
  if (now >= at(sale.ends_at)) return ['ended', t('ended')];
  if (sale.paused) return ['paused', t('paused')];
  if (now < at(sale.starts_at)) return ['upcoming', `${t('opensIn')} ${clockText(at(sale.starts_at) - now)}`];
  return sale.sold_out ? ['soldout', t('soldOut')] : ['open', t('openNow')];
}

function card(sale) {
  const [phase, text] = state(sale);
  const prices = make('p', { className: 'card-price' }, make('strong', {}, money(sale.price, sale.currency, sale.currency_digits)));
  if (sale.list_price > sale.price) prices.append(' ', make('s', {}, money(sale.list_price, sale.currency, sale.currency_digits)), ' ', make('span', { className: 'badge' }, discount(sale.price, sale.list_price)));
  const link = make('a', { className: 'card', href: `/sales/${encodeURIComponent(sale.id)}` }, make('span', { className: `pill ${phase}` }, text), make('h2', {}, sale.title || sale.id), prices);
  return make('li', {}, link);
}

function draw() {
  if (!sales) return;
  const rank = { open: 0, upcoming: 1, paused: 2, soldout: 3, ended: 4 };
  const sorted = [...sales].sort((a, b) => rank[state(a)[0]] - rank[state(b)[0]] || at(a.starts_at) - at(b.starts_at));
  const cards = sorted.map(card);
  // Only what changed is touched, so that focus stays where it is.
  const list = $('sales');
  if (list.children.length !== cards.length) list.replaceChildren(...cards);
  else cards.forEach((fresh, place) => list.children[place].isEqualNode(fresh) || list.children[place].firstChild.replaceChildren(...fresh.firstChild.childNodes));
  cards.forEach((_, place) => (list.children[place].firstChild.href = `/sales/${encodeURIComponent(sorted[place].id)}`));
  say($('empty'), sorted.length ? '' : t('noSales'));
  const orders = store.orders();
  $('orders-part').hidden = orders.length === 0;
  $('orders').replaceChildren(...orders.map((order) => make('li', {}, make('a', { href: `/orders/${encodeURIComponent(order.order_id)}`, className: 'mono' }, order.order_id))));
}

async function look() {
  try {
    const { data } = await call('GET', '/api/v1/sales');
    sales = Array.isArray(data) ? data : (data.sales ?? []);
    $('trouble').hidden = true;
  } catch {
    $('trouble').hidden = false;
    say($('trouble'), t('noNetwork'));
  }
}

start();
clock.keepInStep();
await look();
const current = (sales ?? []).filter((sale) => at(sale.ends_at) > clock.now());
if (current.length === 1 && !location.search.includes('all')) location.replace(`/sales/${encodeURIComponent(current[0].id)}`);
else document.body.dataset.phase = 'list';
onLanguage(draw);
draw();
setInterval(draw, 1000);
setInterval(() => document.visibilityState === 'visible' && look(), 5000);

// The order's page: the same ticket, from an address that can be kept.

import { Refusal, call } from './api.js';
import * as clock from './clock.js';
import { follow } from './follow.js';
import { $, login, make, say, start } from './page.js';
import * as store from './store.js';
import { onLanguage, t } from './text.js';
import { Ticket } from './ticket.js';

const orderId = decodeURIComponent(location.pathname.split('/')[2] ?? '');
const toSale = make('a', { className: 'button quiet', hidden: true });
const ticket = new Ticket($('ticket'), { links: [toSale] });
let missing = '';
/** Whether the sale is of a demo, which can pay here; not known until the sale has been asked. */
let demo;

function draw() {
  document.title = `${t('order')} ${orderId.slice(-6)}`;
  toSale.textContent = t('toSale');
  say($('note'), missing ? t(missing) : ticket.order ? '' : t('loading'));
}

const changed = (order) => {
  const before = ticket.order?.status;
  ticket.show({ ...order, demo: demo === true });
  if (order.sale) toSale.href = `/sales/${encodeURIComponent(order.sale)}`;
  toSale.hidden = !order.sale;
  if (order.sale && demo === undefined) askDemo(order.sale);
  // The first state is heard from the heading, which takes the focus.
  if (before !== order.status) say($('live'), before ? t(order.status) : '');
  draw();
};
async function askDemo(sale) {
  demo = false;
  try {
    ({ demo = false } = (await call('GET', `/api/v1/sales/${encodeURIComponent(sale)}`)).data);
  } catch {
    demo = undefined;
  }
  if (demo && ticket.order) ticket.show({ ...ticket.order, demo });
}
const trouble = (error) => {
  $('trouble').hidden = !error;
  if (error) say($('trouble'), t(navigator.onLine ? 'noNetwork' : 'offline'));
};

async function watch(mayLogIn) {
  try {
    await follow(orderId, store.passOf(orderId), { changed, trouble, signal: undefined });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401 && mayLogIn && (await login().catch(() => false))) return watch(false);
    missing = error.status === 401 ? 'login' : 'unknown-order';
    draw();
  }
}

start();
onLanguage(draw);
draw();
clock.keepInStep();
setInterval(() => ticket.tick(), 500);
watch(true);

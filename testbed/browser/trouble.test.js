// What goes wrong between a press and its answer: whatever it is, the buyer comes back to the same, single order.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { buyerContext, launch, lit, orderId, presses, status } from './chromium.js';
import { startFloodgate } from './floodgate.js';

const ORDERS = '**/api/v1/sales/*/orders';
let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

async function scenario(run, options = {}) {
  const floodgate = await startFloodgate(options);
  const context = await buyerContext(browser);
  try {
    const page = await context.newPage();
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await run({ floodgate, context, page, posts: presses(context) });
    assert.deepEqual(context.faults, []);
    const { sold, pending } = await floodgate.atRest();
    assert.deepEqual([sold, pending], [1, 0], 'exactly one unit is held');
  } finally {
    await context.close();
    await floodgate.stop();
  }
}

test('a double click is one order', () =>
  scenario(async ({ page, posts }) => {
    await page.locator('#buy').dblclick();
    await status(page, 'unpaid');
    assert.equal(posts.length, 1);
  }));

test('two tabs are one order', () =>
  scenario(async ({ floodgate, context, page }) => {
    const other = await context.newPage();
    await other.goto(floodgate.saleUrl);
    await lit(other);
    await Promise.all([page.locator('#buy').click(), other.locator('#buy').click()]);
    await Promise.all([status(page, 'unpaid'), status(other, 'unpaid')]);
    assert.equal(await orderId(page), await orderId(other));
    await page.locator('#cancel').click();
    await page.locator('#cancel-yes').click();
    await status(other, 'closed');
    await page.locator('#buy-again').click();
    await lit(page);
    await page.locator('#buy').click();
    await status(page, 'unpaid');
  }));

test('eight tabs do not take each other’s connections', () =>
  scenario(async ({ floodgate, context, page }) => {
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    for (let more = 0; more < 7; more++) {
      const tab = await context.newPage();
      await tab.goto(floodgate.saleUrl);
      await status(tab, 'unpaid');
      // Chromium without a window calls every tab visible: say what a real one would.
      await tab.evaluate(() => {
        Object.defineProperty(document, 'visibilityState', { get: () => 'hidden' });
        document.dispatchEvent(new Event('visibilitychange'));
      });
    }
  }));

test('an answer that is lost on the way is asked for', () =>
  scenario(async ({ page, posts }) => {
    let lost = 0;
    await page.route(ORDERS, async (route) => {
      if (lost++) return route.continue();
      await route.fetch();
      await route.abort('connectionreset');
    });
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    assert.equal(posts.length, 1, 'the order was found without a second press');
  }));

test('a press that never arrived is pressed again with the same pass', () =>
  scenario(async ({ page, posts }) => {
    let lost = 0;
    await page.route(ORDERS, (route) => (lost++ ? route.continue() : route.abort('connectionreset')));
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    assert.equal(posts.length, 2);
    const [first, second] = await Promise.all(posts.map((post) => post.headerValue('floodgate-pass')));
    assert.equal(first, second);
  }));

test('a refusal after a lost answer is not believed', () =>
  scenario(async ({ page }) => {
    let round = 0;
    await page.route(ORDERS, async (route) => {
      if (round++ === 0) return route.abort('connectionreset');
      await route.fetch();
      await route.fulfill({ status: 410, contentType: 'application/problem+json', body: JSON.stringify({ type: '/problems/sold-out', status: 410 }) });
    });
    await page.locator('#buy').click();
    await status(page, 'unpaid');
  }));

const refuse = (route, status, word, retryAfter) =>
  route.fulfill({ status, headers: { 'Retry-After': String(retryAfter) }, contentType: 'application/problem+json', body: JSON.stringify({ type: `/problems/${word}`, status }) });

for (const [code, word] of [[503, 'busy'], [429, 'slow-down'], [503, 'uncertain'], [403, 'not-started']]) {
  test(`${word}, twice: goes on by itself with the same pass`, () =>
    scenario(async ({ page, posts }) => {
      let round = 0;
      await page.route(ORDERS, (route) => (round++ < 2 ? refuse(route, code, word, 1) : route.continue()));
      await page.locator('#buy').click();
      await status(page, 'unpaid');
      assert.equal(new Set(await Promise.all(posts.map((post) => post.headerValue('floodgate-pass')))).size, 1);
      assert.equal(posts.length, 3);
    }));
}

test('without event streams the order is polled', () =>
  scenario(async ({ page }) => {
    await page.route('**/events', (route) => refuse(route, 404, 'not-found', 1));
    await page.locator('#buy').click();
    await status(page, 'unpaid');
  }));

test('offline at the press, online again: the order comes', () =>
  scenario(async ({ context, page }) => {
    // The question is answered, the network goes with the press.
    await page.route(ORDERS, async (route) => {
      await context.setOffline(true);
      await route.abort('internetdisconnected');
      await page.unroute(ORDERS);
    });
    await page.locator('#buy').click();
    await page.getByText('You are offline.').first().waitFor();
    await sleep(1000);
    await context.setOffline(false);
    await status(page, 'unpaid');
  }));

test('a reload while the answer is on its way comes back to the same order', () =>
  scenario(async ({ page, posts }) => {
    const sent = page.waitForRequest(ORDERS);
    await page.route(ORDERS, async (route) => {
      await route.fetch();
      await sleep(3000);
      await route.abort().catch(() => {});
    });
    await page.locator('#buy').click();
    const pass = await (await sent).headerValue('floodgate-pass');
    await sleep(500);
    await page.unroute(ORDERS, { behavior: 'ignoreErrors' });
    await page.reload();
    await status(page, 'unpaid');
    const id = await orderId(page);
    for (const post of posts) assert.equal(await post.headerValue('floodgate-pass'), pass);
    await page.reload();
    await status(page, 'unpaid');
    assert.equal(await orderId(page), id);
  }));

test('the server is killed and started again: the order is still there', () =>
  scenario(async ({ floodgate, page }) => {
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    const id = await orderId(page);
    await floodgate.kill();
    await page.reload().catch(() => {});
    await floodgate.start();
    await page.goto(floodgate.saleUrl);
    await status(page, 'unpaid');
    assert.equal(await orderId(page), id);
  }));

test('an open page outlives a restart of the server', () =>
  scenario(async ({ floodgate, page }) => {
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    await floodgate.kill();
    await page.locator('#trouble:visible').waitFor();
    await floodgate.start();
    await page.locator('#trouble').waitFor({ state: 'hidden' });
    await page.locator('#cancel').click();
    await page.locator('#cancel-yes').click();
    await status(page, 'closed');
    await page.locator('#buy-again').click();
    await page.locator('#buy.lit').click();
    await status(page, 'unpaid');
  }));

// What the page says when there is nothing to press, and how it looks, reads and sounds.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { buyerContext, launch, lit, picture, status } from './chromium.js';
import { ADMIN_TOKEN, startFloodgate } from './floodgate.js';

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

async function scenario(options, contextOptions, run) {
  const floodgate = await startFloodgate(options);
  const context = await buyerContext(browser, contextOptions);
  try {
    await run({ floodgate, context, page: await context.newPage() });
    assert.deepEqual(context.faults, []);
  } finally {
    await context.close();
    await floodgate.stop();
  }
}

test('sold out, then a unit returns and the button lights by itself', () =>
  scenario({ sale: { total: 1 } }, {}, async ({ floodgate, page }) => {
    const other = await floodgate.buyer('faster');
    const { order_id: id } = await other.buy();
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy:not(.lit)', { hasText: 'Sold out' }).waitFor();
    await picture(page, 'en-3-sold-out');
    await floodgate.atRest();
    await other.cancel(id);
    await lit(page);
    assert.match(await page.locator('#live').innerText(), /available again/);
    await page.locator('#buy').click();
    await status(page, 'unpaid');
  }));

test('sold out at the press is said in plain words', () =>
  scenario({ sale: { total: 1 }, opensInMs: 12_000, gate: { opens_before_s: 600 } }, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy', { hasText: 'Ready for the opening' }).waitFor();
    await lit(page);
    // Frozen, so that the page does not hear of the other buyer before it presses.
    await page.route('**/api/v1/sales/desk', (route) => route.abort());
    await (await floodgate.buyer('faster')).buy();
    await page.locator('#buy').click();
    await page.getByText('Sold out while you pressed. Nothing was bought.').waitFor();
    await page.locator('#buy:not(.lit)', { hasText: 'Sold out' }).waitFor();
  }));

test('paused and resumed', () =>
  scenario({}, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await floodgate.admin('POST', '/pause');
    await page.locator('#buy:not(.lit)', { hasText: 'Paused' }).waitFor();
    await floodgate.admin('POST', '/resume');
    await lit(page);
  }));

test('ended, unknown, and an order of nobody', () =>
  scenario({ lastsMs: 3000 }, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy:not(.lit)', { hasText: 'Ended' }).waitFor();
    await picture(page, 'en-4-ended');
    await page.goto(`${floodgate.url}/sales/nothing`);
    await page.getByText('There is no such sale.').waitFor();
    await page.goto(`${floodgate.url}/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV`);
    await page.getByText('There is no such order').waitFor();
    assert.equal((await page.goto(`${floodgate.url}/orders/not-an-order`)).status(), 404);
  }));

test('the gate is full, then sold out', () =>
  scenario({ sale: { total: 1, passes_per_unit: 1 } }, {}, async ({ floodgate, page }) => {
    const other = await floodgate.buyer('inside');
    const pass = await other.pass();
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await page.locator('#buy').click();
    await page.getByText('Enough people are inside already.').waitFor();
    await other.press(pass);
    await page.locator('#buy:not(.lit)', { hasText: 'Sold out' }).waitFor();
  }));

test('a user whose login has run out is logged in again', () =>
  scenario({}, {}, async ({ floodgate, context, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await context.clearCookies();
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    await context.clearCookies();
    await page.locator('#cancel').click();
    await page.locator('#cancel-yes').click();
    await status(page, 'closed');
  }));

test('a press of who has bought on another device goes to that order, to be paid', () =>
  scenario({}, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    const user = await page.evaluate(() => JSON.parse(localStorage.getItem('floodgate.user')));
    const { order_id: id } = await (await floodgate.buyer(user)).buy();
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    assert.equal(await page.locator('#to-order').getAttribute('href'), `/orders/${id}`);
    await page.locator('#pay').waitFor();
  }));

test('who was shown another price is told, sees the new one, and buys at that', () =>
  scenario({}, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await page.locator('#price', { hasText: '2,066.40' }).waitFor();
    // Frozen, so that the page does not hear of the change before it presses.
    await page.route('**/api/v1/sales/desk', (route) => route.abort());
    await floodgate.admin('POST', '/edit', { price: 99900, reason: 'a misprint' });
    await page.locator('#buy').click();
    await page.getByText('The seller has changed price or terms.').waitFor();
    await page.unroute('**/api/v1/sales/desk');
    await page.locator('#price', { hasText: '999.00' }).waitFor();
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    await page.locator('#ticket', { hasText: '999.00' }).waitFor();
  }));

test('sold out, and an order from another device is found; without one it is said', () =>
  scenario({ sale: { total: 1 } }, {}, async ({ floodgate, context, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    const user = await page.evaluate(() => JSON.parse(localStorage.getItem('floodgate.user')));
    const { order_id: id } = await (await floodgate.buyer(user)).buy();
    await page.locator('#buy:not(.lit)', { hasText: 'Sold out' }).waitFor();
    await page.locator('#own').click();
    await status(page, 'unpaid');
    assert.equal(await page.locator('#to-order').getAttribute('href'), `/orders/${id}`);
    await page.evaluate(() => localStorage.clear());
    await context.clearCookies();
    await page.goto(floodgate.saleUrl);
    await page.locator('#own').click();
    await page.getByText('You have no order here.').waitFor();
  }));

test('the language follows the browser, is switched and remembered', () =>
  scenario({ opensInMs: 3_600_000 }, { locale: 'fr-FR' }, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await page.getByText('Not open yet').waitFor();
    await page.locator('#language').click();
    await page.getByText('尚未开抢').waitFor();
    await page.reload();
    await page.getByText('尚未开抢').waitFor();
    await page.goto(`${floodgate.url}/?all`);
    await page.getByText('距离开抢').waitFor();
  }));

/** Every visible text whose contrast is below 4.5, and everything to press that is lower than a finger needs. */
const hardToUse = (page) =>
  page.evaluate(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      return canvas.getImageData(0, 0, 1, 1).data;
    };
    const light = (colour) => {
      const [r, g, b] = Array.from(rgba(colour)).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const colour = getComputedStyle(at).backgroundColor;
        if (rgba(colour)[3] === 255) return colour;
      }
      return 'white';
    };
    const isShown = (e) => e.checkVisibility() && !e.closest('.unseen, .skip');
    const texts = [...document.querySelectorAll('body *')].filter((e) => isShown(e) && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
    // The hero's words stand on a drawing, not on a colour.
    const poor = texts.filter((e) => !e.closest('.hero')).flatMap((element) => {
      const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
      const contrast = (a + 0.05) / (b + 0.05);
      return contrast < 4.5 && !element.matches(':disabled') ? [`${element.textContent.trim()}: ${contrast.toFixed(2)}`] : [];
    });
    const low = [...document.querySelectorAll('a, button, input')].filter((e) => isShown(e) && e.getBoundingClientRect().height < 44);
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    return [...poor, ...low.map((e) => `${e.textContent.trim() || e.id}: ${e.getBoundingClientRect().height} px high`), ...(wide > 0 ? [`${wide} px too wide`] : [])];
  });

for (const colorScheme of ['light', 'dark']) {
  test(`every page can be read and pressed: contrast of at least 4.5, 44 px for a finger, nothing wider than the phone (${colorScheme})`, () =>
    scenario({ gate: { challenge: 'off' }, sale: { per_user_limit: 2 } }, { colorScheme, viewport: { width: 320, height: 640 }, reducedMotion: 'reduce' }, async ({ floodgate, page }) => {
      const still = () => page.waitForFunction(() => document.getAnimations().every((animation) => animation.playState !== 'running'));
      await page.goto(floodgate.saleUrl);
      await lit(page);
      await still();
      assert.deepEqual(await hardToUse(page), [], 'open');
      await page.locator('#buy').click();
      await status(page, 'unpaid');
      await page.locator('#cancel').click();
      await still();
      assert.deepEqual(await hardToUse(page), [], 'unpaid, to be cancelled');
      await page.locator('#to-order').click();
      await status(page, 'unpaid');
      assert.deepEqual(await hardToUse(page), [], 'the order');
      await page.goto(`${floodgate.url}/?all`);
      await page.locator('.orders a').waitFor();
      assert.deepEqual(await hardToUse(page), [], 'all sales');
      await page.goto(floodgate.saleUrl);
      await page.locator('#cancel').click();
      await page.locator('#cancel-yes').click();
      await status(page, 'closed');
      assert.deepEqual(await hardToUse(page), [], 'closed');
      await floodgate.admin('POST', '/pause');
      await page.evaluate(() => localStorage.clear());
      await page.reload();
      await page.locator('#buy:not(.lit)', { hasText: 'Paused' }).waitFor();
      assert.deepEqual(await hardToUse(page), [], 'paused');
      assert.equal(await page.locator('#quantity-row').isVisible(), false, 'there is nothing to choose');
      await page.goto(`${floodgate.url}/sales/nothing`);
      await page.getByText('There is no such sale.').waitFor();
      assert.deepEqual(await hardToUse(page), [], 'no sale');
      assert.equal(await page.locator('#buy').isVisible(), false, 'there is nothing to press');
      await page.locator('#elsewhere a').click();
      await page.waitForURL(/\?all$/);
      await page.goto(floodgate.consoleUrl);
      await page.locator('#token').fill(ADMIN_TOKEN);
      await page.keyboard.press('Enter');
      await page.getByText('✓ Ledger adds up').waitFor();
      assert.deepEqual(await hardToUse(page), [], 'console');
    }));
}

test('the countdown over days stands in one line', () =>
  scenario({ opensInMs: 12 * 86_400_000 }, { locale: 'zh-CN', viewport: { width: 320, height: 640 } }, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await page.locator('#days', { hasText: '天' }).waitFor();
    const lines = await page.locator('#days').evaluate((e) => e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).fontSize));
    assert.ok(lines < 2, `${lines} lines`);
    const [digits, leaf] = await page.evaluate(() => ['.digits', '.leaf'].map((name) => document.querySelector(name).getBoundingClientRect()));
    assert.ok(digits.left >= leaf.left && digits.right <= leaf.right, 'within the gate');
  }));

test('nothing is asked of any other host, and answers are guarded', () =>
  scenario({ gate: { challenge: 'image' } }, {}, async ({ floodgate, context, page }) => {
    const hosts = new Set();
    let bytes = 0;
    context.on('response', (answer) => {
      hosts.add(new URL(answer.url()).origin);
      if (!answer.url().includes('/api/')) bytes += Number(answer.headers()['content-length']);
    });
    const answer = await page.goto(floodgate.saleUrl);
    await lit(page);
    assert.match(answer.headers()['content-security-policy'], /default-src 'none'/);
    assert.equal(answer.headers()['x-content-type-options'], 'nosniff');
    assert.deepEqual([...hosts], [floodgate.url]);
    assert.ok(bytes > 0 && bytes < 60 * 1024, `${bytes} bytes`);
    const unnamed = await page.evaluate(() => [...document.querySelectorAll('button, a, input')].filter((e) => e.checkVisibility() && !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML));
    assert.deepEqual(unnamed, []);
  }));

test('every currency is written with the digits that ISO 4217 gives it', () =>
  scenario({}, {}, async ({ floodgate, page }) => {
    const other = { 0: 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF', 3: 'BHD IQD JOD KWD LYD OMR TND', 4: 'CLF UYW' };
    const digitsOf = (currency) => Number(Object.keys(other).find((digits) => other[digits].includes(currency)) ?? 2);
    const definition = (currency) => ({ id: `in-${currency}`, title: currency, currency, price: 100000, total: 1, starts_at: new Date().toISOString(), ends_at: new Date(Date.now() + 3_600_000).toISOString() });
    const offered = [];
    // What the browser knows, and what only the standard does; past currencies are refused.
    for (const currency of new Set([...Intl.supportedValuesOf('currency'), 'UYI', 'UYW', 'CHE', 'ZWG'])) {
      const status = await floodgate.put(definition(currency));
      if (status === 200) offered.push(currency);
      else assert.equal(status, 400, currency);
    }
    assert.ok(offered.length > 150, `${offered.length} currencies`);
    for (const currency of ['AFN', 'HUF', 'IDR', 'IQD', 'YER']) assert.ok(offered.includes(currency), currency);
    await page.goto(`${floodgate.url}/?all`);
    await page.locator('.card').nth(offered.length).waitFor();
    const shown = await page.locator('.card').evaluateAll((cards) => cards.map((card) => [card.querySelector('h2').textContent, card.querySelector('strong').textContent]));
    const written = (digits) => new Intl.NumberFormat('en', { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(100000 / 10 ** digits);
    const wrong = shown.filter(([currency, price]) => offered.includes(currency) && price.match(/[0-9][0-9.,]*/)?.[0] !== written(digitsOf(currency)));
    assert.deepEqual(wrong, []);
  }));

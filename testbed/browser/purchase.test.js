// From the countdown to an order and back: the ways through a purchase when nothing goes wrong.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { buyerContext, launch, lit, orderId, picture, presses, status } from './chromium.js';
import { answerOf, startFloodgate } from './floodgate.js';

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

async function scenario(options, contextOptions, run) {
  const floodgate = await startFloodgate(options);
  const context = await buyerContext(browser, contextOptions);
  try {
    const page = await context.newPage();
    await run({ floodgate, context, page });
    assert.deepEqual(context.faults, []);
  } finally {
    await context.close();
    await floodgate.stop();
  }
}

test('countdown, opening, press, order, cancel, unit back (Chinese, phone)', () =>
  scenario({ opensInMs: 12_000, gate: { pow_bits: 16 } }, { locale: 'zh-CN' }, async ({ floodgate, context, page }) => {
    const posts = presses(context);
    await page.goto(floodgate.url);
    await page.waitForURL(floodgate.saleUrl);
    await page.getByText('尚未开抢').waitFor();
    assert.equal(await page.locator('html').getAttribute('lang'), 'zh-CN');
    assert.equal(await page.locator('#price').innerText(), '¥2,066.40');
    assert.equal(await page.locator('#discount').innerText(), '3 折');
    assert.match(await page.locator('#digits').textContent(), /^00:00:(0[1-9]|1[0-2])$/);
    assert.match(await page.locator('#hint').innerText(), /\d+月\d+日 \d\d:\d\d(:\d\d)? 开抢/, 'when, for those who do not see the countdown');
    await page.locator('#buy').click({ force: true });
    await picture(page, 'zh-1-before');
    assert.equal(posts.length, 0, 'a grey button does nothing');
    await lit(page);
    assert.ok(Date.now() - floodgate.startsAt > -50, 'lit before the opening');
    assert.equal(await page.locator('#leaf-label').textContent(), '', 'no countdown is announced without its digits');
    await sleep(1500);
    await picture(page, 'zh-2-open');
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    await picture(page, 'zh-3-unpaid');
    assert.equal(posts.length, 1);
    assert.match(await page.locator('.ticket-big').innerText(), /^1[45]:\d\d$/);
    const id = await orderId(page);
    assert.deepEqual(await floodgate.atRest().then(({ sold, remaining }) => ({ sold, remaining })), { sold: 1, remaining: 4 });
    await page.locator('#cancel').click();
    await page.evaluate(() => {
      const ticket = document.getElementById('ticket');
      const seen = () => ticket.dataset.status === 'closed' && (window.offered ??= !document.getElementById('buy-again').hidden);
      new MutationObserver(seen).observe(ticket, { attributes: true });
    });
    await page.locator('#cancel-yes').click();
    await status(page, 'closed');
    assert.ok(await page.evaluate(() => window.offered), 'with the cancelled order comes the way to another');
    await picture(page, 'zh-4-closed');
    const figures = await floodgate.atRest();
    assert.deepEqual([figures.sold, figures.remaining, figures.pending], [0, 5, 0]);
    await page.locator('#to-order').click();
    await status(page, 'closed');
    assert.equal(await orderId(page), id);
    await picture(page, 'zh-5-order');
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy-again').click();
    await page.locator('#buy.lit').click();
    await status(page, 'unpaid');
    assert.notEqual(await orderId(page), id);
    assert.equal(await page.locator('#pay').innerText(), '支付 ¥2,066.40');
    await page.locator('#pay').click();
    await status(page, 'paid');
    await page.getByText('已付款，谢谢！').first().waitFor();
    assert.equal(await page.locator('#pay').isHidden() && (await page.locator('#cancel').isHidden()), true, 'nothing is left to pay or to cancel');
    await picture(page, 'zh-6-paid');
    assert.deepEqual(await floodgate.atRest().then(({ sold, remaining }) => ({ sold, remaining })), { sold: 1, remaining: 4 });
  }));

test('paid by keyboard alone on the order\'s own page (English)', () =>
  scenario({}, { phone: false }, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    await page.locator('#to-order').click();
    await page.locator('#pay:visible').waitFor();
    await page.locator('.ticket-head').focus();
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'pay');
    await picture(page, 'en-3-pay');
    await page.keyboard.press('Enter');
    await status(page, 'paid');
    assert.equal(await page.locator(':focus').innerText(), 'Paid. Thank you.', 'focus is on what became of it');
    await page.reload();
    await status(page, 'paid');
  }));

test('picture question by keyboard alone: wrong, then right (English)', () =>
  scenario({ gate: { challenge: 'image' } }, { phone: false }, async ({ floodgate, page }) => {
    let challenge;
    page.on('response', async (answer) => {
      if (answer.url().endsWith('/challenges') && answer.ok()) ({ challenge } = await answer.json());
    });
    await page.goto(floodgate.saleUrl);
    await lit(page);
    for (let steps = 0; !(await page.evaluate(() => document.activeElement?.id === 'buy')); steps++) {
      assert.ok(steps < 10, 'the button is reached with the Tab key');
      await page.keyboard.press('Tab');
    }
    const outline = await page.locator('#buy').evaluate((button) => getComputedStyle(button).outlineStyle);
    assert.equal(outline, 'solid', 'focus shows');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.activeElement?.id === 'answer' && document.getElementById('picture').naturalWidth > 0);
    await picture(page, 'en-1-question');
    await page.keyboard.type('11111');
    await page.keyboard.press('Enter');
    await page.getByText('Not quite. Try again.').waitFor();
    await page.keyboard.type(answerOf(challenge).toLowerCase());
    await page.keyboard.press('Enter');
    await status(page, 'unpaid');
    await picture(page, 'en-2-unpaid');
    assert.match(await page.locator(':focus').innerText(), /yours|in\./, 'focus is on the order');
    await page.reload();
    await status(page, 'unpaid');
    await page.locator('.ticket-head:focus').waitFor();
    assert.equal(await page.locator('#live').textContent(), '', 'the heading has the focus: it is heard once');
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'pay', 'first the way on, then the way out');
    await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    await page.keyboard.press('Shift+Tab');
    await page.keyboard.press('Enter');
    await status(page, 'closed');
  }));

test('three wrong answers bring a new question; cross and Escape close it', () =>
  scenario({ gate: { challenge: 'image' } }, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await page.locator('#buy').click();
    await page.locator('#picture-form:visible').waitFor();
    const first = await page.locator('#picture').getAttribute('src');
    for (let wrong = 0; wrong < 4; wrong++) {
      await page.locator('#answer').fill('11111');
      const judged = page.waitForResponse((answer) => answer.url().endsWith('/passes'));
      await page.locator('#submit-answer').click();
      await judged;
    }
    await page.getByText('Time for a new question.').waitFor();
    await page.waitForFunction((src) => document.getElementById('picture').getAttribute('src') !== src, first).catch(() => {});
    await page.locator('.dialog-head button').click();
    await lit(page);
    await page.locator('#buy').click();
    await page.locator('#picture-form:visible').waitFor();
    await page.keyboard.press('Escape');
    await lit(page);
    assert.equal(await page.locator('#question').isVisible(), false);
  }));

test('whoever cannot see the picture lets the device work', () =>
  scenario({ gate: { challenge: 'image' } }, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await page.locator('#buy').click();
    await page.locator('#cannot-see').click();
    await status(page, 'unpaid');
  }));

test('the button follows the server’s clock, not the device’s', () =>
  scenario({ opensInMs: 12_000 }, {}, async ({ floodgate, page }) => {
    await page.clock.install({ time: Date.now() + 3_600_000 });
    await page.addInitScript(() => {
      window.everLit = false;
      new MutationObserver(() => (window.everLit ||= Boolean(document.querySelector('#buy.lit')))).observe(document, { subtree: true, childList: true, attributes: true });
    });
    await page.goto(floodgate.saleUrl);
    await page.getByText('Not open yet').waitFor();
    assert.match(await page.locator('#digits').textContent(), /^00:00:(0[1-9]|1[0-2])$/);
    assert.equal(await page.evaluate(() => window.everLit), false);
    await lit(page);
    assert.ok(Date.now() >= floodgate.startsAt - 50);
  }));

test('a question answered before the opening leaves one request for the press', () =>
  scenario({ opensInMs: 15_000, gate: { challenge: 'image', opens_before_s: 600 } }, { colorScheme: 'dark' }, async ({ floodgate, context, page }) => {
    let challenge;
    page.on('response', async (answer) => {
      if (answer.url().endsWith('/challenges') && answer.ok()) ({ challenge } = await answer.json());
    });
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy.lit', { hasText: 'Answer the question now' }).click();
    await page.locator('#picture-form:visible').waitFor();
    await page.locator('#answer').fill(answerOf(challenge));
    await page.locator('#submit-answer').click();
    await page.locator('#buy:not(.lit)', { hasText: 'Ready for the opening' }).waitFor();
    await picture(page, 'dark-1-ready');
    await page.locator('#buy.lit', { hasText: 'Buy now' }).waitFor();
    const calls = [];
    context.on('request', (request) => request.method() === 'POST' && calls.push(new URL(request.url()).pathname));
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    await picture(page, 'dark-2-unpaid');
    assert.deepEqual(calls, ['/api/v1/sales/desk/orders']);
  }));

test('a proof of work due before the opening is solved quietly', () =>
  scenario({ opensInMs: 12_000, gate: { opens_before_s: 600 } }, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy:not(.lit)', { hasText: 'Ready for the opening' }).waitFor();
    assert.equal(await page.locator('#question').isVisible(), false);
    await lit(page);
    await page.locator('#buy').click();
    await status(page, 'unpaid');
  }));

test('no question, several units', () =>
  scenario({ gate: { challenge: 'off' }, sale: { per_user_limit: 3 } }, {}, async ({ floodgate, page }) => {
    await page.goto(floodgate.saleUrl);
    await lit(page);
    await page.locator('#more').click();
    await page.locator('#buy').click();
    await status(page, 'unpaid');
    assert.match(await page.locator('.ticket-facts').innerText(), /4,132\.80/);
    assert.equal((await floodgate.atRest()).sold, 2);
  }));

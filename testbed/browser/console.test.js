// The operator's page, against what a buyer sees of it.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { buyerContext, launch, lit, picture } from './chromium.js';
import { ADMIN_TOKEN, startFloodgate } from './floodgate.js';

let browser;
before(async () => (browser = await launch()));
after(() => browser?.close());

test('the operator watches, pauses, resumes and restocks', async () => {
  const floodgate = await startFloodgate({ sale: { total: 1 } });
  const context = await buyerContext(browser, { phone: false });
  try {
    await (await floodgate.buyer('first')).buy();
    await floodgate.atRest();
    const page = await context.newPage();
    await page.goto(floodgate.consoleUrl);
    await page.locator('#token').fill('not the token');
    await page.keyboard.press('Enter');
    await page.getByText('That is not the token.').waitFor();
    await page.locator('#token').fill(ADMIN_TOKEN);
    await page.keyboard.press('Enter');
    await page.getByText('✓ Ledger adds up').waitFor();
    await page.getByText('✓ Ledger and database agree').waitFor();
    const figure = (name) => page.locator('.figures div', { hasText: name }).locator('dd');
    assert.deepEqual(await Promise.all(['Total', 'Remaining', 'Confirmed', 'Sold'].map((name) => figure(name).innerText())), ['1', '0', '1', '1']);

    const sale = await context.newPage();
    await sale.goto(floodgate.saleUrl);
    await sale.locator('#buy:not(.lit)', { hasText: 'Sold out' }).waitFor();
    await page.getByLabel('Units to add').fill('4');
    await page.getByRole('button', { name: 'Restock' }).click();
    await figure('Remaining').filter({ hasText: '4' }).waitFor();
    await picture(page, 'console-1');
    await sale.reload();
    await lit(sale);

    await page.getByRole('button', { name: 'Pause' }).click();
    await page.getByRole('button', { name: 'Yes, pause' }).click();
    await page.getByText('paused by console').waitFor();
    await sale.reload();
    await sale.locator('#buy:not(.lit)', { hasText: 'Paused' }).waitFor();
    await page.getByRole('button', { name: 'Resume' }).click();
    await page.getByRole('button', { name: 'Pause' }).waitFor();
    await sale.reload();
    await lit(sale);

    await page.reload();
    await page.getByText('✓ Ledger adds up').waitFor();
    await page.getByRole('button', { name: '中文' }).or(page.getByLabel('切换到中文')).click();
    await page.getByText('账本平衡').waitFor();
    await picture(page, 'console-2-zh');
    await page.locator('#forget').click();
    await page.locator('#token').waitFor();
    assert.deepEqual(context.faults, []);
  } finally {
    await context.close();
    await floodgate.stop();
  }
});

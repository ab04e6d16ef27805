// Makes the README's picture from the real pages: node showcase.js ../../docs/sale-page.png

import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { buyerContext, launch, lit, status } from './chromium.js';
import { answerOf, startFloodgate } from './floodgate.js';

const out = process.argv[2] ?? '../../docs/sale-page.png';
const browser = await launch();
const floodgate = await startFloodgate({ opensInMs: 14_000, gate: { challenge: 'image' }, sale: { total: 100 } });
try {
  const open = async (locale, colorScheme) => {
    const page = await (await buyerContext(browser, { locale, colorScheme })).newPage();
    page.on('response', async (answer) => {
      if (answer.url().endsWith('/challenges') && answer.ok()) page.challenge = (await answer.json()).challenge;
    });
    await page.goto(floodgate.saleUrl);
    await page.locator('#buy[aria-disabled]').waitFor();
    return page;
  };
  const [english, chinese, dark] = await Promise.all([open('en-GB', 'light'), open('zh-CN', 'light'), open('en-GB', 'dark')]);
  await sleep(1500);
  const shots = [await english.screenshot()];
  await Promise.all([english, chinese, dark].map(lit));
  await sleep(2000);
  shots.push(await chinese.screenshot());
  await english.locator('#buy').click();
  await english.locator('#picture-form:visible').waitFor();
  await english.waitForFunction(() => document.getElementById('picture').naturalWidth > 0);
  await sleep(600);
  shots.push(await english.screenshot());
  await dark.locator('#buy').click();
  await dark.locator('#picture-form:visible').waitFor();
  await dark.locator('#answer').fill(answerOf(dark.challenge));
  await dark.locator('#submit-answer').click();
  await status(dark, 'unpaid');
  await sleep(1500);
  shots.push(await dark.screenshot());

  const sheet = await browser.newPage({ viewport: { width: 1480, height: 790 } });
  const images = shots.map((shot) => `<img src="data:image/png;base64,${shot.toString('base64')}">`).join('');
  await sheet.setContent(`<style>
    body { margin: 0; height: 790px; display: flex; gap: 28px; align-items: center; justify-content: center; background: linear-gradient(160deg, #123f4d, #2b7d83); }
    img { width: 322px; border-radius: 30px; box-shadow: 0 0 0 7px #08222b, 0 24px 60px -12px #0009; }
  </style>${images}`);
  await sheet.waitForFunction(() => [...document.images].every((image) => image.complete));
  mkdirSync(dirname(out), { recursive: true });
  await sheet.screenshot({ path: out });
} finally {
  await browser.close();
  await floodgate.stop();
}

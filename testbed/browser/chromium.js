// One real Chromium for a test file, fresh contexts for its tests, and a picture of every moment worth looking at.

import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const PHONE = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
const DESK = { viewport: { width: 1200, height: 760 } };
/** Nothing takes longer on a machine that does many things besides. */
export const PATIENCE_MS = 60_000;

export async function launch() {
  const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
  if (!existsSync(executablePath)) throw new Error(`no Chromium at ${executablePath}: install it (Debian: chromium fonts-noto-cjk) or set CHROMIUM`);
  return chromium.launch({ executablePath, args: FLAGS });
}

/** A buyer's browser. Errors of the page's own are kept in `context.faults`. */
export async function buyerContext(browser, { locale = 'en-GB', phone = true, ...more } = {}) {
  const context = await browser.newContext({ locale, ...(phone ? PHONE : DESK), ...more });
  context.setDefaultTimeout(PATIENCE_MS);
  context.faults = [];
  context.on('weberror', (fault) => context.faults.push(fault.error().stack));
  // Refusals are part of the protocol: only what the browser itself objects to counts.
  context.on('console', (message) => {
    if (message.type() === 'error' && !/^Failed to load resource/.test(message.text())) context.faults.push(message.text());
  });
  return context;
}

/** Keeps a picture in the folder named by SCREENSHOTS, if any. */
export async function picture(page, name) {
  const folder = process.env.SCREENSHOTS;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), animations: 'disabled' });
}

/** Waits for the order's status on the page. */
export const status = (page, wanted) => page.waitForSelector(`#ticket[data-status=${wanted}]`);
export const lit = (page) => page.waitForSelector('#buy.lit');
export const orderId = (page) => page.locator('#ticket .ticket-facts .mono').innerText();

/** Counts the page's purchase calls. */
export function presses(context) {
  const seen = [];
  context.on('request', (request) => request.method() === 'POST' && /\/sales\/[^/]+\/orders$/.test(new URL(request.url()).pathname) && seen.push(request));
  return seen;
}

// What every page shares: language switch, element making, the demo's login.

import { Refusal, call } from './api.js';
import * as store from './store.js';
import { chooseLanguage, currentLanguage, setLanguage, t } from './text.js';

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; text children are text, never markup. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Sets text only where it differs, so that a live region speaks once. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function start() {
  chooseLanguage(store.language());
  $('language').addEventListener('click', () => {
    const next = currentLanguage() === 'zh' ? 'en' : 'zh';
    store.rememberLanguage(next);
    setLanguage(next);
  });
}

let loggingIn = null;

/** The demo's login under a made-up name. Resolves to whether there is a user now; where it is no demo, the shop's own login must do. */
export function login() {
  loggingIn ??= call('POST', '/api/v1/demo/login', { body: { user: store.demoUser() } })
    .then(
      () => true,
      (error) => {
        if (error instanceof Refusal) return false;
        throw error;
      },
    )
    .finally(() => (loggingIn = null));
  return loggingIn;
}

/** Plain words for a refusal. */
export function words(refusal) {
  if (refusal.status === 401 && refusal.word !== 'pass-invalid') return t('login');
  if (refusal.word === 'not-enough') return t('not-enough', { n: refusal.body.remaining ?? '' });
  if (refusal.word === 'busy' || refusal.word === 'slow-down' || refusal.word === 'uncertain') return t('gaveUp');
  const plain = ['limit-reached', 'pass-used', 'pass-invalid', 'gate-full', 'sold-out', 'not-started', 'paused', 'ended', 'noNetwork', 'noWorker', 'unknown-sale', 'wrong-state', 'no-own-order', 'sale-changed'];
  return plain.includes(refusal.word) ? t(refusal.word) : t('failed', { word: refusal.word });
}

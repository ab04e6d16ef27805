// The question dialog: shows a picture or lets the device work, and comes back with a pass. Owns the dialog element.

import { NoAnswer, Refusal, call, jittered, pause } from './api.js';
import { solve } from './pow.js';
import { number, t } from './text.js';

/** Times that a question is asked for again while the server is too busy; about 15 s in all. */
const PATIENCE = 6;

const $ = (id) => document.getElementById(id);

/**
 * Resolves to the pass. Rejects with a Refusal of the server's, or with AbortError when the buyer closes the dialog.
 * `quiet` lets a proof of work go on without the dialog.
 */
export async function ask(saleId, { off, quiet, signal }) {
  const path = `/api/v1/sales/${encodeURIComponent(saleId)}`;
  if (off) return (await patiently(`${path}/passes`, {}, signal)).data;
  const stop = new AbortController();
  const abort = () => stop.abort();
  signal?.addEventListener('abort', abort, { once: true });
  const dialog = $('question');
  dialog.addEventListener('close', abort, { once: true });
  let wanted;
  let note = '';
  try {
    for (;;) {
      const { data: question } = await patiently(`${path}/challenges`, wanted ? { kind: wanted } : {}, stop.signal);
      const show = question.kind === 'image' ? byPicture : byWork;
      const outcome = await show(question, { dialog, note, quiet, signal: stop.signal }, async (answer) => {
        return (await patiently(`${path}/passes`, { challenge: question.challenge, answer }, stop.signal)).data;
      });
      if (outcome.pass) return outcome.pass;
      wanted = outcome.wanted ?? wanted;
      note = outcome.note ?? '';
    }
  } finally {
    dialog.removeEventListener('close', abort);
    signal?.removeEventListener('abort', abort);
    if (dialog.open) dialog.close();
  }
}

async function patiently(path, body, signal) {
  for (let round = 1; ; round++) {
    try {
      return await call('POST', path, { body, signal });
    } catch (error) {
      const passing = error instanceof NoAnswer || (error instanceof Refusal && ['busy', 'slow-down', 'not-started'].includes(error.word));
      // The button lights by an estimate: a refusal that names a second or less is about that.
      const early = error.word === 'not-started' && !(error.retryAfterMs <= 1000);
      if (!passing || early || round >= PATIENCE) throw error;
      await pause(jittered(Math.max(Math.min(error.retryAfterMs ?? 0, 5000), 250 * round)), signal);
    }
  }
}

function open(dialog, kind) {
  $('picture-form').hidden = kind !== 'image';
  $('work').hidden = kind !== 'proof-of-work';
  $('question-text').textContent = t(kind === 'image' ? 'questionImage' : 'questionWork');
  if (!dialog.open) dialog.showModal();
}

async function byPicture(question, { dialog, note, signal }, redeem) {
  open(dialog, 'image');
  const [form, input, picture, message] = [$('picture-form'), $('answer'), $('picture'), $('question-note')];
  message.textContent = note && t(note);
  picture.src = question.image_url;
  input.value = '';
  input.focus();
  const listening = new AbortController();
  const on = (element, event, listener) => element.addEventListener(event, listener, { signal: listening.signal });
  try {
    return await new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => reject(new DOMException('closed', 'AbortError')), { once: true });
      on(picture, 'error', () => (message.textContent = t('imageFailed')));
      on($('another'), 'click', () => resolve({}));
      on($('cannot-see'), 'click', () => resolve({ wanted: 'proof-of-work' }));
      on(form, 'submit', async (event) => {
        event.preventDefault();
        if (form.ariaBusy === 'true' || !input.value.trim()) return input.focus();
        form.ariaBusy = 'true';
        try {
          resolve({ pass: await redeem(input.value.trim()) });
        } catch (error) {
          if (error instanceof Refusal && error.word === 'wrong-answer') {
            message.textContent = t('wrong');
            input.select();
            input.focus();
          } else if (error instanceof Refusal && error.word === 'challenge-expired') resolve({ note: 'newQuestion' });
          else reject(error);
        } finally {
          form.ariaBusy = 'false';
        }
      });
    });
  } finally {
    listening.abort();
  }
}

async function byWork(question, { dialog, quiet, signal }, redeem) {
  if (!quiet || dialog.open) {
    open(dialog, 'proof-of-work');
    $('question-note').textContent = '';
    $('work-bar').value = 0;
    $('work-tried').textContent = '';
  }
  const progress = (share, tried) => {
    $('work-bar').value = share;
    $('work-tried').textContent = t('tried', { n: number(tried) });
  };
  const answer = await solve(question.puzzle, progress, signal);
  try {
    return { pass: await redeem(answer) };
  } catch (error) {
    if (error instanceof Refusal && error.word === 'challenge-expired') return {};
    throw error;
  }
}

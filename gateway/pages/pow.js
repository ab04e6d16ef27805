// Solves a puzzle on up to four cores. Resolves to the answer's digits.

import { Refusal } from './api.js';

export function solve(puzzle, progress, signal) {
  if (puzzle.algorithm !== 'sha256') return Promise.reject(new Refusal(0, 'noWorker', {}));
  const count = Math.max(1, Math.min(4, (navigator.hardwareConcurrency || 2) - 1));
  const workers = [];
  let tried = 0;
  return new Promise((resolve, reject) => {
    signal?.addEventListener('abort', () => reject(new DOMException('stopped', 'AbortError')), { once: true });
    for (let first = 0; first < count; first++) {
      const worker = new Worker(new URL('./pow-worker.js', import.meta.url));
      workers.push(worker);
      worker.onerror = () => reject(new Refusal(0, 'noWorker', {}));
      worker.onmessage = ({ data }) => {
        if (data.answer !== undefined) return resolve(data.answer);
        tried += data.tried;
        // The search has no memory: this is the chance that it would have ended by now.
        progress(1 - Math.exp(-tried / 2 ** puzzle.bits), tried);
      };
      worker.postMessage({ prefix: puzzle.prefix, bits: puzzle.bits, first, step: count });
    }
  }).finally(() => workers.forEach((worker) => worker.terminate()));
}

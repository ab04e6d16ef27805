// Looks for n with SHA-256(prefix ":" n) starting with `bits` zero bits, beside the page so that it stays smooth.
// Plain SHA-256 (FIPS 180-4): crypto.subtle answers one promise a hash, which is twenty times slower here.

const K = new Int32Array(64);
const START = new Int32Array(8);
for (let candidate = 2, found = 0; found < 64; candidate++) {
  let prime = true;
  for (let d = 2; d * d <= candidate; d++) prime &&= candidate % d !== 0;
  if (!prime) continue;
  // The first 32 bits of the fractional parts of the primes' roots.
  const fraction = (root) => ((root - Math.floor(root)) * 4294967296) | 0;
  if (found < 8) START[found] = fraction(Math.sqrt(candidate));
  K[found++] = fraction(Math.cbrt(candidate));
}

const w = new Int32Array(64);

function compress(state, block, at) {
  for (let i = 0; i < 16; i++, at += 4) w[i] = (block[at] << 24) | (block[at + 1] << 16) | (block[at + 2] << 8) | block[at + 3];
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15], y = w[i - 2];
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    w[i] = (w[i - 16] + s0 + w[i - 7] + s1) | 0;
  }
  let a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
  for (let i = 0; i < 64; i++) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
  }
  state[0] += a; state[1] += b; state[2] += c; state[3] += d; state[4] += e; state[5] += f; state[6] += g; state[7] += h;
}

const state = new Int32Array(8);

function hash(message, length) {
  state.set(START);
  const blocks = (length + 9 + 63) >> 6;
  message.fill(0, length, blocks * 64);
  message[length] = 0x80;
  const bits = length * 8;
  for (let i = 0; i < 4; i++) message[blocks * 64 - 1 - i] = bits >>> (8 * i);
  for (let block = 0; block < blocks; block++) compress(state, message, block * 64);
}

function zeroBits() {
  for (let i = 0; i < 8; i++) if (state[i] !== 0) return i * 32 + Math.clz32(state[i]);
  return 256;
}

const REPORT_EVERY = 20_000;

onmessage = ({ data: { prefix, bits, first, step } }) => {
  const head = new TextEncoder().encode(`${prefix}:`);
  const message = new Uint8Array((head.length + 20 + 9 + 63) & ~63);
  message.set(head);
  for (let n = first, tried = 1; ; n += step, tried++) {
    const digits = String(n);
    for (let i = 0; i < digits.length; i++) message[head.length + i] = digits.charCodeAt(i);
    hash(message, head.length + digits.length);
    if (zeroBits() >= bits) return postMessage({ answer: digits });
    if (tried % REPORT_EVERY === 0) postMessage({ tried: REPORT_EVERY });
  }
};

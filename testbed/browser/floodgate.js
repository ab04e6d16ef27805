// Starts and kills the real binary in a directory of its own, and buys beside the browser where a second buyer is needed.

import { spawn } from 'node:child_process';
import { createHash, createHmac } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_MAX_MS = 60_000;
const STOP_MAX_MS = 60_000;
const LOG_KEPT = 200;
const PASS_SECRET = 'a secret of the browser tests, long enough';
export const ADMIN_TOKEN = 'an admin token of the browser tests';
export const SALE = 'desk';

const freePort = () =>
  new Promise((resolve, reject) => {
    const server = createServer().once('error', reject).listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

const toml = (table) => Object.entries(table).map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join('\n');

const LONG_AGO = { id: 'past', item_id: 'past-1', title: 'Past', price: 1, total: 1, starts_at: '2020-01-01T00:00:00Z', ends_at: '2020-01-02T00:00:00Z' };

/** A sale of the near future is published when all else is ready: `opensInMs` counts from there. `gate` and `sale` override keys of theirs. */
export async function startFloodgate({ opensInMs = 0, lastsMs = 3_600_000, gate = {}, sale = {} } = {}) {
  const binary = process.env.FLOODGATE_BIN;
  if (!binary) throw new Error('FLOODGATE_BIN must name the floodgate binary: cargo build, then FLOODGATE_BIN=$PWD/target/debug/floodgate');
  const directory = await mkdtemp(join(tmpdir(), 'floodgate-browser-'));
  const [port, adminPort] = [await freePort(), await freePort()];
  const soon = opensInMs > 0 && opensInMs < 60_000;
  const definition = () => {
    const startsAt = Date.now() + opensInMs;
    const at = (ms) => new Date(ms).toISOString();
    return {
      id: SALE, item_id: 'desk-1', title: 'Reclaimed-oak writing desk', description: 'From the floor of a closed ballroom. Solid, oiled, numbered by hand.',
      currency: 'CNY', price: 206640, list_price: 688800, total: 5, per_user_limit: 1, pay_within_s: 900, starts_at: at(startsAt), ends_at: at(startsAt + lastsMs), ...sale,
    };
  };
  const config = `
[gateway]
${toml({ listen: `127.0.0.1:${port}`, threads: 1 })}
[admin]
${toml({ listen: `127.0.0.1:${adminPort}`, token_file: join(directory, 'admin.token') })}
[auth]
${toml({ demo: true, hs256_secret: 'users of the browser tests, long enough' })}
[gate]
pass_secrets = [{ id = "k1", secret = "${PASS_SECRET}" }]
${toml({ challenge: 'proof-of-work', pow_bits: 12, ...gate })}
[queue]
${toml({ directory: join(directory, 'queue') })}
[orders]
${toml({ database_url: `sqlite://${join(directory, 'orders.db')}` })}
[[sale]]
${toml(soon ? LONG_AGO : definition())}
`;
  await writeFile(join(directory, 'admin.token'), ADMIN_TOKEN, { mode: 0o600 });
  await writeFile(join(directory, 'floodgate.toml'), config);
  const floodgate = new Floodgate(binary, directory, port, adminPort);
  await floodgate.start();
  if (soon) await floodgate.publish(definition);
  return floodgate;
}

class Floodgate {
  #binary;
  #directory;
  #admin;
  #child;
  #log = [];

  constructor(binary, directory, port, adminPort) {
    this.#binary = binary;
    this.#directory = directory;
    this.#admin = `http://127.0.0.1:${adminPort}`;
    this.consoleUrl = `${this.#admin}/console`;
    this.url = `http://127.0.0.1:${port}`;
    this.saleUrl = `${this.url}/sales/${SALE}`;
  }

  /** Once the only other sale has been settled and is listed no more. */
  async publish(definition) {
    await this.#listed((sales) => sales.length === 0);
    const sale = definition();
    this.startsAt = Date.parse(sale.starts_at);
    const headers = { Authorization: `Bearer ${ADMIN_TOKEN}`, 'Content-Type': 'application/json' };
    const answer = await fetch(`${this.#admin}/admin/v1/sales`, { method: 'PUT', headers, body: JSON.stringify(sale) });
    if (!answer.ok) throw new Error(`PUT: ${answer.status} ${await answer.text()}`);
    await this.#listed((sales) => sales.length === 1);
  }

  /** Publishes one more sale: the answer's status. */
  async put(sale) {
    const headers = { Authorization: `Bearer ${ADMIN_TOKEN}`, 'Content-Type': 'application/json' };
    return (await fetch(`${this.#admin}/admin/v1/sales`, { method: 'PUT', headers, body: JSON.stringify(sale) })).status;
  }

  async #listed(good) {
    for (const until = Date.now() + READY_MAX_MS; ; await sleep(50)) {
      const { sales } = await fetch(`${this.url}/api/v1/sales`).then((answer) => answer.json());
      if (good(sales)) return;
      if (Date.now() > until) throw new Error(`these sales are listed: ${JSON.stringify(sales)}`);
    }
  }

  async start() {
    const child = spawn(this.#binary, ['--config', join(this.#directory, 'floodgate.toml')], { cwd: this.#directory, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    child.ended = new Promise((resolve) => {
      child.once('exit', resolve);
      child.once('error', resolve);
    });
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => {
        this.#log.push(text);
        this.#log.splice(0, this.#log.length - LOG_KEPT);
      });
    }
    for (const until = Date.now() + READY_MAX_MS; ; await sleep(50)) {
      // Nothing to note either: the first questions are drawn.
      const quiet = (said) => said.ready && said.conditions.length === 0;
      if (await fetch(`${this.#admin}/readyz`).then((answer) => answer.json()).then(quiet, () => false)) return;
      if (child.exitCode !== null || Date.now() > until) {
        await this.stop();
        throw new Error(`floodgate did not become ready:\n${this.#log.join('')}`);
      }
    }
  }

  /** As a crash would. */
  async kill() {
    this.#child.kill('SIGKILL');
    await this.#child.ended;
  }

  async stop() {
    const child = this.#child;
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGTERM');
      const late = setTimeout(() => child.kill('SIGKILL'), STOP_MAX_MS);
      await child.ended;
      clearTimeout(late);
    }
    await rm(this.#directory, { recursive: true, force: true });
  }

  /** Calls the operator's side; a path below `/admin/v1/sales/{sale}`. */
  async admin(method, path = '', body = undefined) {
    const headers = { Authorization: `Bearer ${ADMIN_TOKEN}`, 'Content-Type': 'application/json' };
    const answer = await fetch(`${this.#admin}/admin/v1/sales/${SALE}${path}`, { method, headers, body: body && JSON.stringify(body) });
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
    return answer.json().catch(() => ({}));
  }

  /** Waits until nothing is on its way any more and gives the figures. */
  async atRest() {
    for (let round = 0; round < 1200; round++, await sleep(50)) {
      const figures = await this.admin('GET');
      if (figures.at_rest) return figures;
    }
    throw new Error('not at rest after a minute');
  }

  /** A buyer without a browser. */
  async buyer(name) {
    const call = async (method, path, body, headers = {}) => {
      const answer = await fetch(`${this.url}/api/v1${path}`, { method, headers: { 'Content-Type': 'application/json', ...headers }, body: body && JSON.stringify(body) });
      const data = await answer.json().catch(() => ({}));
      if (!answer.ok) throw Object.assign(new Error(`${method} ${path}: ${answer.status} ${JSON.stringify(data)}`), { status: answer.status, data });
      return data;
    };
    const { token } = await call('POST', '/demo/login', { user: name });
    const user = { Authorization: `Bearer ${token}` };
    const pass = async () => {
      const question = await call('POST', `/sales/${SALE}/challenges`, { kind: 'proof-of-work' }, user);
      return (await call('POST', `/sales/${SALE}/passes`, { challenge: question.challenge, answer: solve(question.puzzle) }, user)).pass;
    };
    const press = (given) => call('POST', `/sales/${SALE}/orders`, {}, { 'Floodgate-Pass': given });
    return {
      pass,
      press,
      buy: async () => press(await pass()),
      order: (id) => call('GET', `/orders/${id}`, undefined, user),
      cancel: (id) => call('POST', `/orders/${id}/cancel`, {}, user),
    };
  }
}

function solve({ prefix, bits }) {
  for (let n = 0; ; n++) {
    const digest = createHash('sha256').update(`${prefix}:${n}`).digest();
    if (Math.clz32(digest.readUInt32BE(0)) >= bits) return String(n);
  }
}

// The answer of a picture follows from its serial and from the secret, which this process has configured: the same arithmetic as
// gateway/src/admission/challenge, so that no back door is needed to test with pictures.
const GLYPHS = '34679ACDEFHJKMNPRTWXYadehkmtwxy';
const mac = (key, ...fields) => {
  const hmac = createHmac('sha256', key);
  for (const field of fields) {
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(field.length));
    hmac.update(length).update(field);
  }
  return hmac.digest();
};

/** What the picture of this question shows. */
export function answerOf(challenge) {
  const token = Buffer.from(challenge, 'base64url');
  const serialAt = 2 + token[1] + 1 + 16;
  const serial = token.subarray(serialAt, serialAt + 8);
  const bytes = mac(mac(PASS_SECRET, Buffer.from('floodgate challenge answer 1')), Buffer.from('glyphs'), serial);
  return Array.from({ length: 5 }, (_, place) => GLYPHS[bytes.readUInt16BE(2 * place) % GLYPHS.length]).join('');
}

// The operator's page: what each sale's units are doing, pause, resume, restock. The token stays in this tab and goes out as a header only.

import { NoAnswer, Refusal, call } from './api.js';
import { $, make, say, start } from './page.js';
import { clockText, currentLanguage, number, onLanguage } from './text.js';

const words = {
  en: {
    heading: 'Floodgate console', token: 'Operator token', enter: 'Enter', hint: 'It stands in the file that admin.token_file names. It is kept in this tab only.', wrong: 'That is not the token.', forget: 'Leave',
    silent: 'Floodgate does not answer. Trying again.', upcoming: 'opens in {time}', open: 'open, {time} left', ended: 'ended', paused: 'paused by {by}', rehearsal: 'rehearsal',
    total: 'Total', remaining: 'Remaining', pending: 'Pending', confirmed: 'Confirmed', sold: 'Sold (database)', backlog: 'Backlog (log)', epoch: 'Epoch', limit: 'Per person',
    balanced: 'Ledger adds up', unbalanced: 'Ledger does not add up: {total} ≠ {sum}', rest: 'At rest', moving: 'Orders are on their way', agree: 'Ledger and database agree', differ: 'At rest, but confirmed ≠ sold',
    pause: 'Pause', resume: 'Resume', sure: 'Pause for everybody?', yes: 'Yes, pause', no: 'No', restock: 'Units to add', add: 'Restock', done: '{id}: done.', failed: '{id}: not done. {why}', meter: '{confirmed} confirmed, {pending} pending of {total}',
  },
  zh: {
    heading: 'Floodgate 控制台', token: '管理员令牌', enter: '进入', hint: '令牌在 admin.token_file 所指的文件里，只保存在本标签页。', wrong: '令牌不对。', forget: '退出',
    silent: 'Floodgate 没有回应，正在重试。', upcoming: '{time} 后开抢', open: '进行中，剩 {time}', ended: '已结束', paused: '已被 {by} 暂停', rehearsal: '演练',
    total: '总量', remaining: '剩余', pending: '待确认', confirmed: '已确认', sold: '已售（数据库）', backlog: '积压（日志）', epoch: '纪元', limit: '每人限购',
    balanced: '账本平衡', unbalanced: '账本不平：{total} ≠ {sum}', rest: '已静止', moving: '订单在途', agree: '账本与数据库一致', differ: '已静止，但已确认 ≠ 已售',
    pause: '暂停', resume: '恢复', sure: '对所有人暂停？', yes: '确定暂停', no: '不', restock: '补货数量', add: '补货', done: '{id}：完成。', failed: '{id}：未完成。{why}', meter: '共 {total}，已确认 {confirmed}，待确认 {pending}',
  },
};
const w = (key, values = {}) => words[currentLanguage()][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');

const LOOK_MS = 2_000;
/** Figures are asked of so many sales a look, those that matter first. */
const FIGURES_MAX = 24;
const TOKEN = 'floodgate.admin-token';

let token = sessionStorage.getItem(TOKEN) ?? '';
let sales = [];
let silent = false;
/** By sale id: `{ root, parts, figures, asking, restockId }`. */
const cards = new Map();

const admin = (method, path, body) => call(method, `/admin/v1/sales${path}`, { body, token }).then(({ data }) => data);

function phase(sale) {
  const now = Date.now();
  const [starts, ends] = [Date.parse(sale.starts_at), Date.parse(sale.ends_at)];
  if (now >= ends) return ['ended', w('ended')];
  if (sale.paused_by) return ['paused', w('paused', { by: sale.paused_by })];
  return now < starts ? ['upcoming', w('upcoming', { time: clockText(starts - now) })] : ['open', w('open', { time: clockText(ends - now) })];
}

function card(id) {
  if (cards.has(id)) return cards.get(id);
  const el = (tag, className, ...children) => make(tag, { className }, ...children);
  const button = (className) => make('button', { className, type: 'button' });
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  const bars = ['confirmed', 'pending'].map((name) => {
    const bar = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
    bar.setAttribute('class', name);
    bar.setAttribute('height', '1');
    svg.append(bar);
    return bar;
  });
  const p = {
    title: el('h2', ''), pill: el('span', 'pill'), svg, bars, figures: el('dl', 'figures'), verdicts: el('p', 'verdicts'),
    pause: button('quiet'), resume: button('quiet'), sure: el('span', ''), yes: button('danger'), no: button('quiet'),
    units: make('input', { type: 'number', min: '1', max: '1000000', step: '1', required: true, id: `units-${id}` }), label: make('label', { htmlFor: `units-${id}` }), add: make('button', { className: 'quiet' }),
  };
  const form = el('form', '', p.label, p.units, p.add);
  const root = el('li', '', el('div', 'desk-head', el('div', '', p.title, make('p', { className: 'mono' }, id)), p.pill), el('div', 'meter', svg), p.figures, p.verdicts, el('div', 'tools', p.pause, p.resume, p.sure, p.yes, p.no, form));
  const made = { root, parts: p, figures: null, asking: false, restockId: null };
  const change = async (path, body) => {
    try {
      await admin('POST', `/${encodeURIComponent(id)}/${path}`, body);
      say($('live'), w('done', { id }));
      showTrouble('');
      return true;
    } catch (error) {
      if (error.status === 401) leave(true);
      showTrouble(w('failed', { id, why: error.body?.detail ?? error.message }));
      return false;
    } finally {
      look();
    }
  };
  const ask = (asking) => {
    made.asking = asking;
    draw();
    (asking ? p.no : p.pause).focus();
  };
  p.pause.addEventListener('click', () => ask(true));
  p.no.addEventListener('click', () => ask(false));
  p.yes.addEventListener('click', () => change('pause', { by: 'console' }).then(() => ask(false)));
  p.resume.addEventListener('click', () => change('resume', {}));
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (p.add.disabled) return;
    p.add.disabled = true;
    // Kept until an answer came: the same restock twice counts once.
    made.restockId ??= `console-${crypto.getRandomValues(new Uint32Array(3)).join('-')}`;
    if (await change('restock', { restock_id: made.restockId, units: p.units.valueAsNumber })) {
      made.restockId = null;
      p.units.value = '';
    }
    p.add.disabled = false;
  });
  p.units.addEventListener('input', () => (made.restockId = null));
  cards.set(id, made);
  return made;
}

function drawCard(sale) {
  const { parts: p, figures, asking } = card(sale.id);
  const [name, text] = phase(sale);
  say(p.title, sale.title || sale.id);
  say(p.pill, sale.rehearsal ? `${text} · ${w('rehearsal')}` : text);
  p.pill.className = `pill ${name}`;
  const total = figures?.total ?? sale.total_now;
  const { confirmed = 0, pending = 0 } = figures ?? {};
  p.svg.setAttribute('viewBox', `0 0 ${Math.max(1, total)} 1`);
  p.svg.setAttribute('aria-label', w('meter', { confirmed, pending, total }));
  [[0, confirmed], [confirmed, pending]].forEach(([x, width], place) => {
    p.bars[place].setAttribute('x', x);
    p.bars[place].setAttribute('width', width);
  });
  const shown = [['total', total], ['remaining', figures?.remaining], ['pending', figures?.pending], ['confirmed', figures?.confirmed], ['sold', figures?.sold ?? sale.sold], ['backlog', figures?.backlog], ['epoch', figures?.epoch], ['limit', sale.per_user_limit]];
  p.figures.replaceChildren(...shown.map(([key, value]) => make('div', {}, make('dt', {}, w(key)), make('dd', {}, value === undefined ? '–' : number(value)))));
  const verdicts = [];
  if (figures) {
    const sum = figures.remaining + figures.pending + figures.confirmed;
    verdicts.push(sum === figures.total ? ['', `✓ ${w('balanced')}`] : ['bad', `✗ ${w('unbalanced', { total: figures.total, sum })}`]);
    verdicts.push(['', figures.at_rest ? w('rest') : w('moving')]);
    if (figures.at_rest) verdicts.push(figures.confirmed === figures.sold ? ['', `✓ ${w('agree')}`] : ['bad', `✗ ${w('differ')}`]);
  }
  p.verdicts.replaceChildren(...verdicts.map(([className, words]) => make('span', { className }, words)));
  const over = name === 'ended';
  p.pause.hidden = over || Boolean(sale.paused_by) || asking;
  p.resume.hidden = over || !sale.paused_by;
  for (const part of [p.sure, p.yes, p.no]) part.hidden = !asking;
  p.units.form.hidden = over;
  [[p.pause, 'pause'], [p.resume, 'resume'], [p.sure, 'sure'], [p.yes, 'yes'], [p.no, 'no'], [p.label, 'restock'], [p.add, 'add']].forEach(([element, key]) => say(element, w(key)));
}

function draw() {
  const inside = Boolean(token);
  document.title = w('heading');
  [['heading', 'heading'], ['token-label', 'token'], ['enter-button', 'enter'], ['enter-hint', 'hint'], ['forget', 'forget']].forEach(([id, key]) => say($(id), w(key)));
  $('enter').hidden = inside;
  $('forget').hidden = !inside;
  $('sales').hidden = !inside;
  if (!inside) return;
  sales.forEach(drawCard);
  const wanted = sales.map((sale) => card(sale.id).root);
  // Only a changed order is touched, so that focus and half-typed numbers stay.
  if (wanted.length !== $('sales').children.length || wanted.some((root, place) => $('sales').children[place] !== root)) $('sales').replaceChildren(...wanted);
}

function showTrouble(text) {
  $('trouble').hidden = !text;
  say($('trouble'), text);
}

function leave(wrong) {
  token = '';
  sessionStorage.removeItem(TOKEN);
  sales = [];
  draw();
  showTrouble(wrong ? w('wrong') : '');
  $('token').focus();
}

let timer = 0;
let looking = false;
async function look() {
  if (looking || !token) return;
  looking = true;
  clearTimeout(timer);
  try {
    const rank = { open: 0, paused: 1, upcoming: 2, ended: 3 };
    const seen = (await admin('GET', '')).sales;
    seen.sort((a, b) => rank[phase(a)[0]] - rank[phase(b)[0]] || Date.parse(b.starts_at) - Date.parse(a.starts_at));
    sales = seen;
    for (const sale of seen.slice(0, FIGURES_MAX)) card(sale.id).figures = await admin('GET', `/${encodeURIComponent(sale.id)}`).catch((error) => (error.status === 401 ? Promise.reject(error) : null));
    if (silent) showTrouble('');
    silent = false;
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) leave(true);
    else if (error instanceof Refusal || error instanceof NoAnswer) {
      silent = true;
      showTrouble(w('silent'));
    } else throw error;
  } finally {
    looking = false;
  }
  draw();
  timer = setTimeout(look, document.visibilityState === 'visible' ? LOOK_MS : LOOK_MS * 10);
}

$('enter').addEventListener('submit', (event) => {
  event.preventDefault();
  token = $('token').value.trim();
  $('token').value = '';
  sessionStorage.setItem(TOKEN, token);
  showTrouble('');
  look();
});
$('forget').addEventListener('click', () => leave(false));

start();
onLanguage(draw);
draw();
if (token) look();
else $('token').focus();
setInterval(() => token && sales.length && draw(), 1000);

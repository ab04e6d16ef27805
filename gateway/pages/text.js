// The words of the pages in English and Chinese, and how numbers, money and time are written. Knows no state but the language.

const words = {
  en: {
    tagline: 'Fair when everybody comes at once.', switch: '中文', switchLabel: '切换到中文',
    skip: 'Skip to the purchase', loading: 'Loading…', allSales: 'All sales', yourOrders: 'Your orders', noSales: 'Nothing is on sale.',
    opensIn: 'Opens in', endsIn: 'ends in {time}', openNow: 'Open', soldOut: 'Sold out', paused: 'Paused', ended: 'Ended', days: '{n} d',
    units: 'Units', perUser: 'Per person', payWithin: 'Pay within', minutes: '{n} min', off: '−{n}%', rehearsal: 'Rehearsal: nothing is delivered', demo: 'Demo: anybody at this computer may be any buyer', quantity: 'Quantity', less: 'One less', more: 'One more',
    buy: 'Buy now', notYet: 'Not open yet', prepare: 'Answer the question now', prepared: 'Ready for the opening',
    working: 'One moment…', sending: 'Sending…', checking: 'Checking your order…',
    hintUpcoming: 'Opens {at}. The button lights up by itself, by the time of the server.',
    hintPrepare: 'Answer the question before the opening, and one press is enough then.',
    hintPrepared: 'Your question is answered. One press at the opening is enough.',
    hintSolving: 'Your device answers the question by itself. Nothing to do.',
    hintOpen: 'One press. A press again changes nothing: you have one place.',
    hintSoldOut: 'Units come back when somebody cancels. This page looks again by itself.',
    hintPaused: 'The seller has paused the sale. This page goes on by itself.',
    hintEnded: 'This sale is over.',
    announceLeft: 'Opens in {time}.', announceOpen: 'The sale is open.', announceBack: 'Units are available again.',
    question: 'Before you buy', questionImage: 'Type the five characters. Capital or small does not matter.', imageAlt: 'A picture of five characters. If you cannot read it, choose “I cannot see it” below.',
    answer: 'Characters', submit: 'Continue', another: 'Another picture', cannotSee: 'I cannot see it', close: 'Close',
    questionWork: 'Your device is solving a small puzzle instead of you. This takes some seconds.', tried: '{n} numbers tried',
    wrong: 'Not quite. Try again.', newQuestion: 'Time for a new question.', imageFailed: 'The picture did not arrive. Take another one.',
    unsure: 'No answer came back. Your place is safe; asking for your order.', offline: 'You are offline. Your place is kept; this goes on when the network is back.',
    busy: 'Very busy. Trying again for you.', gaveUp: 'It is too busy to let you in just now. Nothing was bought.',
    'limit-reached': 'You already hold as many units as one person may.', 'not-enough': 'Only {n} left. Choose fewer.', 'pass-used': 'That order is closed. You may try again.',
    'pass-invalid': 'Your answer is too old. Please answer again.', 'gate-full': 'Enough people are inside already. Try again in a moment.', 'sold-out': 'Sold out while you pressed. Nothing was bought.',
    'not-started': 'Not open yet.', login: 'Sign in with the shop first, then come back.', 'unknown-sale': 'There is no such sale.', 'unknown-order': 'There is no such order, or it is not yours.',
    failed: 'That did not work ({word}). Nothing was bought.', noNetwork: 'The shop does not answer. Trying again.', noWorker: 'This browser cannot solve the puzzle.',
    'sale-changed': 'The seller has changed price or terms. Look again, then press. Nothing was bought.', ownOrder: 'I have bought already', 'no-own-order': 'You have no order here.',
    order: 'Order', amount: 'Amount', stepQueued: 'In the queue', stepUnpaid: 'Yours', stepPaid: 'Paid',
    queued: 'You are in.', queuedHint: 'Your units are reserved. The order is being written.', ahead: 'ahead of you', eta: 'about {time}', soon: 'any moment',
    unpaid: 'It is yours.', unpaidHint: 'Pay before the time is up.', unpaidDemo: 'Pay before the time is up. This is a demo: no money moves.', pay: 'Pay {amount}', cannotPay: 'The order has moved on; it cannot be paid now.', payBy: 'Left to pay', paid: 'Paid. Thank you.', paidHint: 'The shop takes it from here.',
    closed: 'Order closed.', closedHint: 'The units went back on sale.', refunding: 'Refund on its way.', refunded: 'Refunded.', rejected: 'This order could not be kept.', rejectedHint: 'Nothing is owed. We are sorry.',
    cancel: 'Cancel order', cancelAsk: 'Give the units back?', cancelYes: 'Yes, cancel', cancelNo: 'Keep it', 'wrong-state': 'The order has moved on; it cannot be cancelled now.', toSale: 'To the sale', toOrder: 'Order page', buyAgain: 'Buy again',
  },
  zh: {
    tagline: '人潮再大，先来后到。', switch: 'EN', switchLabel: 'Switch to English',
    skip: '跳到购买', loading: '加载中…', allSales: '全部秒杀', yourOrders: '我的订单', noSales: '暂时没有秒杀。',
    opensIn: '距离开抢', endsIn: '{time} 后结束', openNow: '正在秒杀', soldOut: '已售罄', paused: '已暂停', ended: '已结束', days: '{n} 天',
    units: '总量', perUser: '每人限购', payWithin: '付款时限', minutes: '{n} 分钟', off: '{z} 折', rehearsal: '演练场次：不发货', demo: '演示：这台电脑上的任何人都可以冒充任何买家', quantity: '购买数量', less: '减一件', more: '加一件',
    buy: '立即抢购', notYet: '尚未开抢', prepare: '先答题', prepared: '已就绪，等待开抢',
    working: '请稍候…', sending: '提交中…', checking: '正在查询订单…',
    hintUpcoming: '{at} 开抢，到点按钮自动点亮，以服务器时间为准。',
    hintPrepare: '现在答题，开抢时一点即可。',
    hintPrepared: '题已答完，开抢时一点即可。',
    hintSolving: '设备正在自动答题，无需操作。',
    hintOpen: '点一次就够。重复点击不会多买，也不会丢掉位置。',
    hintSoldOut: '有人取消订单时库存会回补，本页会自动刷新。',
    hintPaused: '商家暂停了本场秒杀，恢复后本页会自动继续。',
    hintEnded: '本场秒杀已经结束。',
    announceLeft: '{time}后开抢。', announceOpen: '开抢了。', announceBack: '有库存回补，可以购买了。',
    question: '答题后购买', questionImage: '请输入图中的五个字符，不分大小写。', imageAlt: '一张含五个字符的图片。如果看不清，请选择下方的“我看不见图片”。',
    answer: '字符', submit: '继续', another: '换一张', cannotSee: '我看不见图片', close: '关闭',
    questionWork: '设备正在替你解一道小题，需要几秒钟。', tried: '已尝试 {n} 个数',
    wrong: '不对，再试一次。', newQuestion: '题目已过期，换一道。', imageFailed: '图片没有加载出来，换一张吧。',
    unsure: '没有收到回复。你的位置还在，正在查询订单。', offline: '网络已断开。你的位置会保留，联网后自动继续。',
    busy: '人太多了，正在替你重试。', gaveUp: '现在实在太挤，没能进去。没有产生订单。',
    'limit-reached': '你已达到每人限购数量。', 'not-enough': '只剩 {n} 件，请减少数量。', 'pass-used': '那个订单已关闭，可以重新抢购。',
    'pass-invalid': '答题已过期，请重新答题。', 'gate-full': '场内人数已满，请稍后再试。', 'sold-out': '手慢了，已售罄。没有产生订单。',
    'not-started': '尚未开抢。', login: '请先在商城页面登录，再回到这里。', 'unknown-sale': '没有这场秒杀。', 'unknown-order': '没有这个订单，或者它不属于你。',
    failed: '没有成功（{word}）。没有产生订单。', noNetwork: '服务器没有回应，正在重试。', noWorker: '这个浏览器无法解题。',
    'sale-changed': '商家修改了价格或条款，请看清后再点。没有产生订单。', ownOrder: '我已经买到了', 'no-own-order': '你在这里没有订单。',
    order: '订单', amount: '金额', stepQueued: '排队中', stepUnpaid: '已抢到', stepPaid: '已付款',
    queued: '排上了！', queuedHint: '库存已为你预留，订单正在写入。', ahead: '排在你前面', eta: '约 {time}', soon: '马上就好',
    unpaid: '抢到了！', unpaidHint: '请在时限内付款。', unpaidDemo: '请在时限内付款。这是演示，不会真的扣款。', pay: '支付 {amount}', cannotPay: '订单状态已变化，现在不能付款。', payBy: '剩余付款时间', paid: '已付款，谢谢！', paidHint: '接下来交给商城。',
    closed: '订单已关闭。', closedHint: '库存已回补。', refunding: '退款中。', refunded: '已退款。', rejected: '订单未能保留。', rejectedHint: '无需付款，非常抱歉。',
    cancel: '取消订单', cancelAsk: '确定放弃吗？', cancelYes: '确定取消', cancelNo: '再想想', 'wrong-state': '订单状态已变化，现在不能取消。', toSale: '回到秒杀', toOrder: '订单页', buyAgain: '再买一次',
  },
};

const listeners = new Set();
let language = 'en';

/** Takes the remembered language, else the browser's. */
export function chooseLanguage(remembered) {
  const wanted = remembered || (navigator.languages || [navigator.language]).find((tag) => /^(zh|en)/i.test(tag)) || 'en';
  setLanguage(/^zh/i.test(wanted) ? 'zh' : 'en');
}

export function setLanguage(next) {
  language = next;
  document.documentElement.lang = next === 'zh' ? 'zh-CN' : 'en';
  for (const element of document.querySelectorAll('[data-t]')) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll('[data-t-label]')) element.setAttribute('aria-label', t(element.dataset.tLabel));
  for (const element of document.querySelectorAll('[data-t-alt]')) element.alt = t(element.dataset.tAlt);
  for (const listener of listeners) listener();
}

export const currentLanguage = () => language;
export const onLanguage = (listener) => listeners.add(listener);

/** The words for a key; `{name}` is replaced from `values`. */
export function t(key, values = {}) {
  const text = words[language][key] ?? words.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');
}

export const known = (key) => Object.hasOwn(words.en, key);

/** Minor units as money. `digits` come with the price: a browser's own idea of them is its language's custom, not the currency's. */
export function money(minor, currency, digits) {
  if (digits === undefined) return `${minor} ${currency}`;
  const locale = language === 'zh' ? 'zh-CN' : 'en';
  const format = new Intl.NumberFormat(locale, { style: 'currency', currency, currencyDisplay: 'narrowSymbol', minimumFractionDigits: digits, maximumFractionDigits: digits });
  return format.format(minor / 10 ** digits);
}

/** “−70%” or “3 折”; empty where nothing is off. */
export function discount(price, listPrice) {
  if (!(listPrice > price)) return '';
  return t('off', { n: Math.floor((1 - price / listPrice) * 100), z: Math.max(0.1, Math.ceil((price / listPrice) * 100) / 10) });
}

export const number = (n) => new Intl.NumberFormat(language === 'zh' ? 'zh-CN' : 'en').format(n);

/** Hours, minutes and seconds that are left, rounded up: 0 shows only when it is over. */
export function parts(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  return { days: Math.floor(seconds / 86400), hours: Math.floor(seconds / 3600) % 24, minutes: Math.floor(seconds / 60) % 60, seconds: seconds % 60 };
}

const two = (n) => String(n).padStart(2, '0');

/** “2 d 03:04:05”, “1:04:05” or “04:05”. */
export function clockText(ms) {
  const { days, hours, minutes, seconds } = parts(ms);
  const day = days ? `${t('days', { n: days })} ` : '';
  return day + (days || hours ? `${two(hours)}:` : '') + `${two(minutes)}:${two(seconds)}`;
}

/** The day and time of an opening where the buyer is; seconds only where there are any. */
export function moment(ms) {
  const second = Math.floor(ms / 1000) % 60 ? '2-digit' : undefined;
  return new Intl.DateTimeFormat(language === 'zh' ? 'zh-CN' : 'en-GB', { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second }).format(ms);
}

/** A short span such as “3 s” or “2 min”. */
export function span(ms) {
  const seconds = Math.max(1, Math.round(ms / 1000));
  if (seconds < 90) return language === 'zh' ? `${seconds} 秒` : `${seconds} s`;
  return t('minutes', { n: Math.round(seconds / 60) });
}

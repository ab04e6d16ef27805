-- Version 1. floodgate_sales and floodgate_orders are public: columns may be added, never changed or removed.
-- Ids and times are text (RFC 3339, UTC, milliseconds), money is minor units, keys and hashes are hexadecimal.
-- What has long rows, and many, is kept with a rowid: inserting them costs a fifth less that way.
-- No CHECK lists the words of a status: the next version may have one more.

CREATE TABLE floodgate_meta (
    name  TEXT NOT NULL PRIMARY KEY,   -- schema_version, deployment, epoch, ledger, journal
    value TEXT NOT NULL
) WITHOUT ROWID;

INSERT INTO floodgate_meta (name, value) VALUES ('epoch', '0'), ('journal', '0');

CREATE TABLE floodgate_sales (
    sale_id    TEXT    NOT NULL PRIMARY KEY,
    total      INTEGER NOT NULL,            -- units on offer now, restocks included
    sold       INTEGER NOT NULL DEFAULT 0,  -- = sum of units_held over the sale's orders
    version    INTEGER NOT NULL,            -- rises with publish, restock, pause, resume, edit and a changed window
    definition TEXT    NOT NULL,            -- JSON, as published and edited; its total is the first one
    terms_version INTEGER NOT NULL DEFAULT 1, -- since when price, currency, limit and pay time are as they are
    starts_at  TEXT    NOT NULL,
    ends_at    TEXT    NOT NULL,
    paused_by  TEXT,
    opened_epoch INTEGER,                   -- the ledger's latest epoch that was complete and about to open for it
    installed_epoch INTEGER,                -- the latest epoch at which somebody took the right to install it
    settled    INTEGER NOT NULL DEFAULT 0,  -- ended, nothing outstanding
    withdrawn_at TEXT,                      -- an operator has ended it, orders and all
    withdrawing INTEGER NOT NULL DEFAULT 0, -- the same, and some of its orders may still be unpaid or paid
    gather_key TEXT,                        -- orders the first presses; drawn at publish, no buyer knows it
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    CHECK (sold >= 0 AND sold <= total)
) WITHOUT ROWID;
-- What is looked after every second.
CREATE INDEX floodgate_sales_settled ON floodgate_sales (settled, sale_id);
CREATE INDEX floodgate_sales_withdrawing ON floodgate_sales (withdrawing, sale_id);
-- What is settled and ends later.
CREATE INDEX floodgate_sales_ends ON floodgate_sales (settled, ends_at);

-- What a sale offered at each of its versions: a promise is judged by the one under which it was made.
CREATE TABLE floodgate_sale_versions (
    sale_id    TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    definition TEXT    NOT NULL,            -- JSON, whole: with total, window and paused_by as they then were
    by_whom    TEXT    NOT NULL,
    at         TEXT    NOT NULL,
    reason     TEXT,
    PRIMARY KEY (sale_id, version)
) WITHOUT ROWID;

CREATE TABLE floodgate_restocks (
    sale_id    TEXT    NOT NULL,
    restock_id TEXT    NOT NULL,
    units      INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    PRIMARY KEY (sale_id, restock_id)
) WITHOUT ROWID;

CREATE TABLE floodgate_orders (
    order_id   TEXT    NOT NULL PRIMARY KEY,
    sale_id    TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    quantity   INTEGER NOT NULL,
    units_held INTEGER NOT NULL,            -- quantity while it holds its units, else 0
    amount     INTEGER NOT NULL,            -- price x quantity
    currency   TEXT    NOT NULL,
    status     TEXT    NOT NULL,            -- unpaid, paid, closed, refunding, refunded, rejected
    reason     TEXT,                        -- why it is closed or rejected
    metadata   TEXT,                        -- the buyer's own
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    pay_by     TEXT,
    version    INTEGER NOT NULL,            -- 1 at first, one more with every change
    sale_version    INTEGER,                -- the sale's, under which it was promised
    origin          TEXT    NOT NULL DEFAULT 'purchase',  -- purchase, waiting
    rehearsal       INTEGER NOT NULL DEFAULT 0,           -- of a practice run: no events, no money
    refunded_amount INTEGER NOT NULL DEFAULT 0,
    paid_at         TEXT,
    CHECK (units_held >= 0 AND units_held <= quantity)
);

-- The per-user limit.
CREATE INDEX floodgate_orders_user ON floodgate_orders (sale_id, user_id);
-- A sale's orders page by page (rebuild, lists).
CREATE INDEX floodgate_orders_sale ON floodgate_orders (sale_id, order_id);
-- What is unpaid beyond its time.
CREATE INDEX floodgate_orders_due ON floodgate_orders (status, pay_by);

-- Whom else an order counts for, beside its user: MACs of what a login has signed.
CREATE TABLE floodgate_order_keys (
    order_id  TEXT NOT NULL,
    limit_key TEXT NOT NULL,
    sale_id   TEXT NOT NULL,
    PRIMARY KEY (order_id, limit_key)
) WITHOUT ROWID;
CREATE INDEX floodgate_order_keys_sale ON floodgate_order_keys (sale_id, limit_key);

-- Outbox: what the ledger has to release and has not answered for.
CREATE TABLE floodgate_releases (
    order_id   TEXT    NOT NULL PRIMARY KEY,
    sale_id    TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    quantity   INTEGER NOT NULL,
    created_at TEXT    NOT NULL
) WITHOUT ROWID;

-- Outbox: what else has to be done outside and has not been answered for. Found by existence, never by a cursor over ids,
-- none of which is used twice.
CREATE TABLE floodgate_outbox (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    kind       TEXT    NOT NULL,            -- swap, timeout, confirm
    order_id   TEXT    NOT NULL,
    sale_id    TEXT    NOT NULL,
    payload    TEXT,
    created_at TEXT    NOT NULL
);
-- Once, however often it is written; by kind.
CREATE UNIQUE INDEX floodgate_outbox_order ON floodgate_outbox (kind, order_id);
-- What goes to the ledger before the sale's row does.
CREATE INDEX floodgate_outbox_sale ON floodgate_outbox (sale_id, kind);

-- Money that came in, as its provider names it. The order need not exist (yet).
CREATE TABLE floodgate_payments (
    provider    TEXT    NOT NULL,
    payment_id  TEXT    NOT NULL,
    order_id    TEXT,                       -- none where the reference names none
    trade_ref   TEXT    NOT NULL,           -- the shop's reference, as the provider gave it back
    amount      INTEGER NOT NULL,
    currency    TEXT    NOT NULL,           -- as given: a wrong one is refunded, not refused
    paid_at     TEXT,                       -- by the provider's clock
    received_at TEXT    NOT NULL,
    disposition TEXT    NOT NULL,           -- kept, refund, unmatched
    reason      TEXT,
    updated_at  TEXT    NOT NULL,
    PRIMARY KEY (provider, payment_id),
    CHECK (amount >= 0)
) WITHOUT ROWID;
CREATE INDEX floodgate_payments_order ON floodgate_payments (order_id);
-- Unmatched ones that have waited long enough.
CREATE INDEX floodgate_payments_disposition ON floodgate_payments (disposition, received_at);

-- Money that goes back, each under one id at every try.
CREATE TABLE floodgate_refunds (
    refund_id    TEXT    NOT NULL PRIMARY KEY,
    provider     TEXT    NOT NULL,
    payment_id   TEXT    NOT NULL,
    order_id     TEXT,
    amount       INTEGER NOT NULL,
    whole        INTEGER NOT NULL,
    reason       TEXT,
    requested_by TEXT    NOT NULL,
    state        TEXT    NOT NULL,          -- requested, sent, succeeded, stuck
    attempts     INTEGER NOT NULL DEFAULT 0,
    next_try_at  TEXT,                      -- none where nothing is to be tried
    provider_refund_id TEXT,
    last_error   TEXT,
    created_at   TEXT    NOT NULL,
    updated_at   TEXT    NOT NULL,
    CHECK (amount >= 0)
) WITHOUT ROWID;
CREATE INDEX floodgate_refunds_payment ON floodgate_refunds (provider, payment_id);
CREATE INDEX floodgate_refunds_order ON floodgate_refunds (order_id);
CREATE INDEX floodgate_refunds_due ON floodgate_refunds (next_try_at);
CREATE INDEX floodgate_refunds_state ON floodgate_refunds (state, refund_id);

-- What subscribers hear, one row a version of an order. Outlives the log that carried it.
CREATE TABLE floodgate_events (
    order_id    TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    type        TEXT    NOT NULL,
    payload     TEXT    NOT NULL,           -- JSON: the whole order and the cause
    created_at  TEXT    NOT NULL,
    relayed_log TEXT,                       -- the instance whose log has it; none yet, or that log was forgotten
    relayed_at  TEXT,
    PRIMARY KEY (order_id, version)
);
-- Those of none, order by order; those of one log.
CREATE INDEX floodgate_events_log ON floodgate_events (relayed_log, order_id, version);
-- Whose retention has ended.
CREATE INDEX floodgate_events_age ON floodgate_events (relayed_at);

-- What a subscriber never took.
CREATE TABLE floodgate_dead_letters (
    subscriber TEXT    NOT NULL,
    event_id   TEXT    NOT NULL,
    payload    TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    attempts   INTEGER NOT NULL,
    at         TEXT    NOT NULL,
    PRIMARY KEY (subscriber, event_id)
);

-- The waiting line, and who entered a draw. A draw permutes the places on reading.
CREATE TABLE floodgate_waiting (
    sale_id   TEXT    NOT NULL,
    user_id   TEXT    NOT NULL,
    place     INTEGER NOT NULL,             -- the number at joining, without a gap
    order_id  TEXT    NOT NULL,             -- drawn at joining: what an offer becomes
    quantity  INTEGER NOT NULL,
    metadata  TEXT,
    salt      TEXT,                         -- of the receipt
    state     TEXT    NOT NULL,             -- waiting, offered, left
    joined_at TEXT    NOT NULL,
    PRIMARY KEY (sale_id, user_id)
);
CREATE UNIQUE INDEX floodgate_waiting_place ON floodgate_waiting (sale_id, place);
CREATE INDEX floodgate_waiting_head ON floodgate_waiting (sale_id, state, place);

CREATE TABLE floodgate_draws (
    sale_id      TEXT    NOT NULL PRIMARY KEY,
    units        INTEGER NOT NULL,          -- the lot; not in the sale's total before it is drawn
    entries      INTEGER,                   -- committed to
    chain        TEXT    NOT NULL,          -- the beacon's
    round        INTEGER NOT NULL,
    root         TEXT,
    block_hashes BLOB,                      -- 32 bytes for each 256 entries
    committed_at TEXT,
    beacon       TEXT,
    seed         TEXT,
    drawn_at     TEXT,
    next_place   INTEGER NOT NULL DEFAULT 0,
    state        TEXT    NOT NULL,
    version      INTEGER NOT NULL
);

-- What operators changed, each row under a MAC that covers the one before. The secret is not in the database; the head is in
-- floodgate_meta.
CREATE TABLE floodgate_journal (
    seq       INTEGER NOT NULL PRIMARY KEY, -- from 1, without a gap
    at        TEXT    NOT NULL,
    operator  TEXT    NOT NULL,
    role      TEXT    NOT NULL,
    action    TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    "before"  TEXT,                         -- JSON
    "after"   TEXT,                         -- JSON
    reason    TEXT,
    prev_hash TEXT    NOT NULL,
    hash      TEXT    NOT NULL
);

-- What operators set while the system runs; the configuration is the ceiling.
CREATE TABLE floodgate_settings (
    name    TEXT    NOT NULL PRIMARY KEY,
    value   TEXT    NOT NULL,
    version INTEGER NOT NULL
) WITHOUT ROWID;

-- Logs: directories, or slots on a broker.
CREATE TABLE floodgate_instances (
    instance_id    TEXT    NOT NULL PRIMARY KEY,
    place          TEXT    NOT NULL,
    registered_at  TEXT    NOT NULL,
    merged_epoch   INTEGER NOT NULL DEFAULT 0,      -- the latest epoch that holds what this log had promised before it
    engine         TEXT    NOT NULL DEFAULT 'disk', -- disk, rocketmq
    holds_promises INTEGER NOT NULL DEFAULT 1,      -- a worker's log holds none: no rebuild waits for it
    generation     INTEGER NOT NULL DEFAULT 0,      -- with the nonce: the opening that log and row agree on
    nonce          TEXT    NOT NULL DEFAULT '',
    left_out_at    TEXT,                            -- when an operator went on without it; none once its process is back
    seen_ledger    TEXT,                            -- the ledger's identity as this member last saw it
    seen_at        TEXT
) WITHOUT ROWID;

-- Logs that workers drain, and the part of the limit, in millionths, that each drain may use until its time is over.
CREATE TABLE floodgate_workers (
    log_id     TEXT    NOT NULL, -- of a process that closes orders: its life
    life       TEXT    NOT NULL, -- of the process; random
    share_ppm  INTEGER NOT NULL,
    expires_at TEXT    NOT NULL,
    work       TEXT    NOT NULL DEFAULT 'drain', -- drain, close
    PRIMARY KEY (work, log_id)
) WITHOUT ROWID;

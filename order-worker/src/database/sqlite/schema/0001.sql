-- Version 1. floodgate_sales and floodgate_orders are public: columns may be added, never changed or removed.
-- Ids and times are text (RFC 3339, UTC, milliseconds), money is minor units.

CREATE TABLE floodgate_meta (
    name  TEXT NOT NULL PRIMARY KEY,   -- schema_version, epoch
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE floodgate_sales (
    sale_id    TEXT    NOT NULL PRIMARY KEY,
    total      INTEGER NOT NULL,            -- units on offer now, restocks included
    sold       INTEGER NOT NULL DEFAULT 0,  -- = sum of units_held over the sale's orders
    version    INTEGER NOT NULL,            -- rises with publish, restock, pause, resume and a changed window
    definition TEXT    NOT NULL,            -- JSON, as first published
    starts_at  TEXT    NOT NULL,
    ends_at    TEXT    NOT NULL,
    paused_by  TEXT,
    opened_epoch INTEGER,                   -- the ledger's latest epoch that was complete and about to open for it
    settled    INTEGER NOT NULL DEFAULT 0,  -- ended, nothing outstanding
    created_at TEXT    NOT NULL,
    updated_at TEXT    NOT NULL,
    CHECK (sold >= 0 AND sold <= total)
) WITHOUT ROWID;

CREATE TABLE floodgate_restocks (
    sale_id    TEXT    NOT NULL,
    restock_id TEXT    NOT NULL,
    units      INTEGER NOT NULL,
    created_at TEXT    NOT NULL,
    PRIMARY KEY (sale_id, restock_id)
) WITHOUT ROWID;

-- With a rowid, unlike the others: its rows are long, and inserting them costs a fifth less that way.
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
    CHECK (units_held >= 0 AND units_held <= quantity)
);

-- The per-user limit.
CREATE INDEX floodgate_orders_user ON floodgate_orders (sale_id, user_id);
-- A sale's orders page by page (rebuild, lists).
CREATE INDEX floodgate_orders_sale ON floodgate_orders (sale_id, order_id);

-- Outbox: what the ledger has to release and has not answered for.
CREATE TABLE floodgate_releases (
    order_id   TEXT    NOT NULL PRIMARY KEY,
    sale_id    TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    quantity   INTEGER NOT NULL,
    created_at TEXT    NOT NULL
) WITHOUT ROWID;

-- Log directories that may hold promises.
CREATE TABLE floodgate_instances (
    instance_id   TEXT NOT NULL PRIMARY KEY,
    place         TEXT NOT NULL,
    registered_at TEXT NOT NULL
) WITHOUT ROWID;

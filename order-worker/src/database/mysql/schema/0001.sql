-- Version 1, for MySQL (8.0.17 or later) and MariaDB (10.6 or later). floodgate_sales and floodgate_orders are public: columns may be added,
-- never changed or removed. Ids and times are text (RFC 3339, UTC, milliseconds), money is minor units, keys and hashes are hexadecimal.
--
-- DDL is no part of a transaction here: every statement can be repeated, after a crash between any two of them.
-- What people name is compared byte for byte, trailing spaces included; such a collation has another name on each of the two servers.
-- No CHECK lists the words of a status: the next version may have one more.

CREATE TABLE IF NOT EXISTS floodgate_meta (
    name  VARCHAR(64)  NOT NULL PRIMARY KEY,   -- schema_version, deployment, epoch, ledger, flushes, journal
    value VARCHAR(255) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

INSERT IGNORE INTO floodgate_meta (name, value) VALUES ('epoch', '0'), ('flushes', '0'), ('journal', '0');

CREATE TABLE IF NOT EXISTS floodgate_sales (
    sale_id    VARCHAR(64)      NOT NULL PRIMARY KEY,
    total      INT UNSIGNED     NOT NULL,             -- units on offer now, restocks included
    sold       INT UNSIGNED     NOT NULL DEFAULT 0,   -- = sum of units_held over the sale's orders
    version    BIGINT UNSIGNED  NOT NULL,             -- rises with publish, restock, pause, resume, edit and a changed window
    definition MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
                                                      -- JSON, as published and edited; its total is the first one
    terms_version   BIGINT UNSIGNED NOT NULL DEFAULT 1, -- since when price, currency, limit and pay time are as they are
    starts_at  CHAR(24)         NOT NULL,
    ends_at    CHAR(24)         NOT NULL,
    paused_by  VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    opened_epoch    BIGINT UNSIGNED NULL,             -- the ledger's latest epoch that was complete and about to open for it
    installed_epoch BIGINT UNSIGNED NULL,             -- the latest epoch at which somebody took the right to install it
    settled    TINYINT UNSIGNED NOT NULL DEFAULT 0,   -- ended, nothing outstanding
    withdrawn_at CHAR(24)       NULL,                 -- an operator has ended it, orders and all
    withdrawing TINYINT UNSIGNED NOT NULL DEFAULT 0,  -- the same, and some of its orders may still be unpaid or paid
    gather_key CHAR(64)         NULL,                 -- orders the first presses; drawn at publish, no buyer knows it
    created_at CHAR(24)         NOT NULL,
    updated_at CHAR(24)         NOT NULL,
    KEY floodgate_sales_settled (settled, sale_id),   -- what is looked after every second
    KEY floodgate_sales_withdrawing (withdrawing, sale_id),  -- likewise
    KEY floodgate_sales_ends (settled, ends_at),      -- what is settled and ends later
    CHECK (sold <= total)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- What a sale offered at each of its versions: a promise is judged by the one under which it was made.
CREATE TABLE IF NOT EXISTS floodgate_sale_versions (
    sale_id    VARCHAR(64)     NOT NULL,
    version    BIGINT UNSIGNED NOT NULL,
    definition MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
                                                      -- JSON, whole: with total, window and paused_by as they then were
    by_whom    VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    at         CHAR(24)        NOT NULL,
    reason     VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    PRIMARY KEY (sale_id, version)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS floodgate_restocks (
    sale_id    VARCHAR(64)  NOT NULL,
    restock_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    units      INT UNSIGNED NOT NULL,
    created_at CHAR(24)     NOT NULL,
    PRIMARY KEY (sale_id, restock_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS floodgate_orders (
    order_id   CHAR(26)        NOT NULL PRIMARY KEY,
    sale_id    VARCHAR(64)     NOT NULL,
    user_id    VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    quantity   INT UNSIGNED    NOT NULL,
    units_held INT UNSIGNED    NOT NULL,              -- quantity while it holds its units, else 0
    amount     BIGINT UNSIGNED NOT NULL,              -- price x quantity
    currency   CHAR(3)         NOT NULL,
    status     VARCHAR(16)     NOT NULL,              -- unpaid, paid, closed, refunding, refunded, rejected
    reason     VARCHAR(64)     NULL,                  -- why it is closed or rejected
    metadata   TEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
                                                      -- the buyer's own
    created_at CHAR(24)        NOT NULL,
    updated_at CHAR(24)        NOT NULL,
    pay_by     CHAR(24)        NULL,
    version    INT UNSIGNED    NOT NULL,              -- 1 at first, one more with every change
    sale_version    BIGINT UNSIGNED  NULL,            -- the sale's, under which it was promised
    origin          VARCHAR(16)      NOT NULL DEFAULT 'purchase',  -- purchase, waiting
    rehearsal       TINYINT UNSIGNED NOT NULL DEFAULT 0,           -- of a practice run: no events, no money
    refunded_amount BIGINT UNSIGNED  NOT NULL DEFAULT 0,
    paid_at         CHAR(24)         NULL,
    KEY floodgate_orders_user (sale_id, user_id),     -- the per-user limit
    KEY floodgate_orders_sale (sale_id, order_id),    -- a sale's orders page by page (rebuild, lists), sums
    KEY floodgate_orders_due (status, pay_by),        -- what is unpaid beyond its time
    CHECK (units_held <= quantity)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Whom else an order counts for, beside its user: MACs of what a login has signed.
CREATE TABLE IF NOT EXISTS floodgate_order_keys (
    order_id  CHAR(26)    NOT NULL,
    limit_key CHAR(64)    NOT NULL,
    sale_id   VARCHAR(64) NOT NULL,
    PRIMARY KEY (order_id, limit_key),
    KEY floodgate_order_keys_sale (sale_id, limit_key)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Outbox: what the ledger has to release and has not answered for.
CREATE TABLE IF NOT EXISTS floodgate_releases (
    order_id   CHAR(26)     NOT NULL PRIMARY KEY,
    sale_id    VARCHAR(64)  NOT NULL,
    user_id    VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    quantity   INT UNSIGNED NOT NULL,
    created_at CHAR(24)     NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Outbox: what else has to be done outside and has not been answered for. Found by existence, never by a cursor over ids.
CREATE TABLE IF NOT EXISTS floodgate_outbox (
    id         BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    kind       VARCHAR(16)  NOT NULL,                 -- swap, timeout, confirm
    order_id   CHAR(26)     NOT NULL,
    sale_id    VARCHAR(64)  NOT NULL,
    payload    TEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    created_at CHAR(24)     NOT NULL,
    UNIQUE KEY floodgate_outbox_order (kind, order_id),  -- once, however often it is written; by kind
    KEY floodgate_outbox_sale (sale_id, kind)            -- what goes to the ledger before the sale's row does
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Money that came in, as its provider names it. The order need not exist (yet).
CREATE TABLE IF NOT EXISTS floodgate_payments (
    provider    VARCHAR(32)     NOT NULL,
    payment_id  VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    order_id    CHAR(26)        NULL,                 -- none where the reference names none
    trade_ref   VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
                                                      -- the shop's reference, as the provider gave it back
    amount      BIGINT UNSIGNED NOT NULL,
    currency    VARCHAR(16)     NOT NULL,             -- as given: a wrong one is refunded, not refused
    paid_at     CHAR(24)        NULL,                 -- by the provider's clock
    received_at CHAR(24)        NOT NULL,
    disposition VARCHAR(16)     NOT NULL,             -- kept, refund, unmatched
    reason      VARCHAR(64)     NULL,
    updated_at  CHAR(24)        NOT NULL,
    PRIMARY KEY (provider, payment_id),
    KEY floodgate_payments_order (order_id),
    KEY floodgate_payments_disposition (disposition, received_at)  -- unmatched ones that have waited long enough
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Money that goes back, each under one id at every try.
CREATE TABLE IF NOT EXISTS floodgate_refunds (
    refund_id    VARCHAR(64)     NOT NULL PRIMARY KEY,
    provider     VARCHAR(32)     NOT NULL,
    payment_id   VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    order_id     CHAR(26)        NULL,
    amount       BIGINT UNSIGNED NOT NULL,
    whole        TINYINT UNSIGNED NOT NULL,
    reason       VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    requested_by VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    state        VARCHAR(16)     NOT NULL,            -- requested, sent, succeeded, stuck
    attempts     INT UNSIGNED    NOT NULL DEFAULT 0,
    next_try_at  CHAR(24)        NULL,                -- none where nothing is to be tried
    provider_refund_id VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    last_error   VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    created_at   CHAR(24)        NOT NULL,
    updated_at   CHAR(24)        NOT NULL,
    KEY floodgate_refunds_payment (provider, payment_id),
    KEY floodgate_refunds_order (order_id),
    KEY floodgate_refunds_due (next_try_at),
    KEY floodgate_refunds_state (state, refund_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- What subscribers hear, one row a version of an order. Outlives the log that carried it.
CREATE TABLE IF NOT EXISTS floodgate_events (
    order_id    CHAR(26)     NOT NULL,
    version     INT UNSIGNED NOT NULL,
    type        VARCHAR(32)  NOT NULL,
    payload     MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
                                                      -- JSON: the whole order and the cause
    created_at  CHAR(24)     NOT NULL,
    relayed_log CHAR(16)     NULL,                    -- the instance whose log has it; none yet, or that log was forgotten
    relayed_at  CHAR(24)     NULL,
    PRIMARY KEY (order_id, version),
    KEY floodgate_events_log (relayed_log, order_id, version),  -- those of none, order by order; those of one log
    KEY floodgate_events_age (relayed_at)                       -- whose retention has ended
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- What a subscriber never took.
CREATE TABLE IF NOT EXISTS floodgate_dead_letters (
    subscriber VARCHAR(64)  NOT NULL,
    event_id   VARCHAR(64)  NOT NULL,
    payload    MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    reason     VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    attempts   INT UNSIGNED NOT NULL,
    at         CHAR(24)     NOT NULL,
    PRIMARY KEY (subscriber, event_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- The waiting line, and who entered a draw. A draw permutes the places on reading.
CREATE TABLE IF NOT EXISTS floodgate_waiting (
    sale_id   VARCHAR(64)     NOT NULL,
    user_id   VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    place     BIGINT UNSIGNED NOT NULL,               -- the number at joining, without a gap
    order_id  CHAR(26)        NOT NULL,               -- drawn at joining: what an offer becomes
    quantity  INT UNSIGNED    NOT NULL,
    metadata  TEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    salt      CHAR(32)        NULL,                   -- of the receipt
    state     VARCHAR(16)     NOT NULL,               -- waiting, offered, left
    joined_at CHAR(24)        NOT NULL,
    PRIMARY KEY (sale_id, user_id),
    UNIQUE KEY floodgate_waiting_place (sale_id, place),
    KEY floodgate_waiting_head (sale_id, state, place)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

CREATE TABLE IF NOT EXISTS floodgate_draws (
    sale_id      VARCHAR(64)      NOT NULL PRIMARY KEY,
    units        INT UNSIGNED     NOT NULL,           -- the lot; not in the sale's total before it is drawn
    entries      BIGINT UNSIGNED  NULL,               -- committed to
    chain        VARCHAR(64)      NOT NULL,           -- the beacon's
    round        BIGINT UNSIGNED  NOT NULL,
    root         CHAR(64)         NULL,
    block_hashes MEDIUMBLOB       NULL,               -- 32 bytes for each 256 entries
    committed_at CHAR(24)         NULL,
    beacon       VARCHAR(1024)    NULL,
    seed         CHAR(64)         NULL,
    drawn_at     CHAR(24)         NULL,
    next_place   BIGINT UNSIGNED  NOT NULL DEFAULT 0,
    state        VARCHAR(16)      NOT NULL,
    version      BIGINT UNSIGNED  NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- What operators changed, each row under a MAC that covers the one before. The secret is not in the database; the head is in floodgate_meta.
CREATE TABLE IF NOT EXISTS floodgate_journal (
    seq       BIGINT UNSIGNED NOT NULL PRIMARY KEY,   -- from 1, without a gap
    at        CHAR(24)        NOT NULL,
    operator  VARCHAR(64) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    role      VARCHAR(16)     NOT NULL,
    action    VARCHAR(32)     NOT NULL,
    subject   VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    `before`  MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,  -- JSON
    after     MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,  -- JSON
    reason    VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    prev_hash CHAR(64)        NOT NULL,
    hash      CHAR(64)        NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- What operators set while the system runs; the configuration is the ceiling.
CREATE TABLE IF NOT EXISTS floodgate_settings (
    name    VARCHAR(64)     NOT NULL PRIMARY KEY,
    value   TEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    version BIGINT UNSIGNED NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Logs: directories, or slots on a broker.
CREATE TABLE IF NOT EXISTS floodgate_instances (
    instance_id   CHAR(16) NOT NULL PRIMARY KEY,
    place         TEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    registered_at CHAR(24) NOT NULL,
    merged_epoch  BIGINT UNSIGNED NOT NULL DEFAULT 0, -- the latest epoch that holds what this log had promised before it
    engine         VARCHAR(16)      NOT NULL DEFAULT 'disk',  -- disk, rocketmq
    holds_promises TINYINT UNSIGNED NOT NULL DEFAULT 1,       -- a worker's log holds none: no rebuild waits for it
    generation     BIGINT UNSIGNED  NOT NULL DEFAULT 0,       -- with the nonce: the opening that log and row agree on
    nonce          VARCHAR(32)      NOT NULL DEFAULT '',
    left_out_at    CHAR(24)         NULL,                     -- when an operator went on without it; none once its process is back
    seen_ledger    VARCHAR(255)     NULL,                     -- the ledger's identity as this member last saw it
    seen_at        CHAR(24)         NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Logs that workers drain, and the part of the limit, in millionths, that each drain may use until its time is over.
CREATE TABLE IF NOT EXISTS floodgate_workers (
    log_id     CHAR(16)     NOT NULL, -- of a process that closes orders: its life
    life       CHAR(16)     NOT NULL, -- of the process; random
    share_ppm  INT UNSIGNED NOT NULL,
    expires_at CHAR(24)     NOT NULL,
    work       VARCHAR(8)   NOT NULL DEFAULT 'drain', -- drain, close
    PRIMARY KEY (work, log_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

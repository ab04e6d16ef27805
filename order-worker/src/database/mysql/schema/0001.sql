-- Version 1, for MySQL (8.0.17 or later) and MariaDB (10.6 or later). floodgate_sales and floodgate_orders are public: columns may be added,
-- never changed or removed. Ids and times are text (RFC 3339, UTC, milliseconds), money is minor units.
--
-- DDL is no part of a transaction here: every statement can be repeated, after a crash between any two of them.
-- What people name is compared byte for byte, trailing spaces included; such a collation has another name on each of the two servers.

CREATE TABLE IF NOT EXISTS floodgate_meta (
    name  VARCHAR(64)  NOT NULL PRIMARY KEY,   -- schema_version, epoch, flushes
    value VARCHAR(255) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

INSERT IGNORE INTO floodgate_meta (name, value) VALUES ('epoch', '0'), ('flushes', '0');

CREATE TABLE IF NOT EXISTS floodgate_sales (
    sale_id    VARCHAR(64)      NOT NULL PRIMARY KEY,
    total      INT UNSIGNED     NOT NULL,             -- units on offer now, restocks included
    sold       INT UNSIGNED     NOT NULL DEFAULT 0,   -- = sum of units_held over the sale's orders
    version    BIGINT UNSIGNED  NOT NULL,             -- rises with publish, restock, pause, resume and a changed window
    definition MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
                                                      -- JSON, as first published
    starts_at  CHAR(24)         NOT NULL,
    ends_at    CHAR(24)         NOT NULL,
    paused_by  VARCHAR(255) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NULL,
    opened_epoch    BIGINT UNSIGNED NULL,             -- the ledger's latest epoch that was complete and about to open for it
    installed_epoch BIGINT UNSIGNED NULL,             -- the latest epoch at which somebody took the right to install it
    settled    TINYINT UNSIGNED NOT NULL DEFAULT 0,   -- ended, nothing outstanding
    created_at CHAR(24)         NOT NULL,
    updated_at CHAR(24)         NOT NULL,
    CHECK (sold <= total)
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
    KEY floodgate_orders_user (sale_id, user_id),     -- the per-user limit
    KEY floodgate_orders_sale (sale_id, order_id),    -- a sale's orders page by page (rebuild, lists), sums
    CHECK (units_held <= quantity)
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Outbox: what the ledger has to release and has not answered for.
CREATE TABLE IF NOT EXISTS floodgate_releases (
    order_id   CHAR(26)     NOT NULL PRIMARY KEY,
    sale_id    VARCHAR(64)  NOT NULL,
    user_id    VARCHAR(128) CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    quantity   INT UNSIGNED NOT NULL,
    created_at CHAR(24)     NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Log directories that may hold promises.
CREATE TABLE IF NOT EXISTS floodgate_instances (
    instance_id   CHAR(16) NOT NULL PRIMARY KEY,
    place         TEXT CHARACTER SET utf8mb4 COLLATE /*!80000 utf8mb4_0900_bin */ /*M!100200 utf8mb4_nopad_bin */ NOT NULL,
    registered_at CHAR(24) NOT NULL,
    merged_epoch  BIGINT UNSIGNED NOT NULL DEFAULT 0  -- the latest epoch that holds what this log had promised before it
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

-- Workers that drain, and the part of the limit that each may use until its time is over.
CREATE TABLE IF NOT EXISTS floodgate_workers (
    worker_id  CHAR(16)     NOT NULL PRIMARY KEY,
    share_ppm  INT UNSIGNED NOT NULL,
    expires_at CHAR(24)     NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET ascii COLLATE ascii_bin;

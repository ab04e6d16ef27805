-- Version 2: several instances on one ledger.

-- The ledger's latest epoch at which somebody has taken the one right to install the sale.
ALTER TABLE floodgate_sales ADD COLUMN installed_epoch INTEGER;

-- The ledger's latest epoch into which this log's promises were merged.
ALTER TABLE floodgate_instances ADD COLUMN merged_epoch INTEGER NOT NULL DEFAULT 0;

-- Workers that drain, and the part of the limit, in millionths, that each may use until its time is over.
CREATE TABLE floodgate_workers (
    worker_id  TEXT    NOT NULL PRIMARY KEY,
    share_ppm  INTEGER NOT NULL,
    expires_at TEXT    NOT NULL
) STRICT;

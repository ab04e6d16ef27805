-- Version 2: several instances on one ledger.

-- The ledger's latest epoch at which somebody has taken the one right to install the sale.
ALTER TABLE floodgate_sales ADD COLUMN installed_epoch INTEGER;

-- The ledger's latest epoch into which this log's promises were merged.
ALTER TABLE floodgate_instances ADD COLUMN merged_epoch INTEGER NOT NULL DEFAULT 0;

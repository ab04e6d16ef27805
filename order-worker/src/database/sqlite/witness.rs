//! The ledger of the present life in `floodgate_meta`, and what members see in `floodgate_instances`.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction, params};
use stock::{LedgerIdentity, Owner, SaleId, Timestamp};

use super::registry::{begin, epoch};
use super::sales::raise_versions;
use super::{DatabaseError, SqliteDatabase, parsed};
use crate::database::witness::fresh;
use crate::database::{Begun, Life, Sight, Witness};

impl SqliteDatabase {
    pub(in crate::database) async fn life(&self) -> Result<Life, DatabaseError> {
        self.read(life).await
    }

    pub(in crate::database) async fn bear_witness(
        &self,
        member: Owner,
        ledger: LedgerIdentity,
    ) -> Result<(), DatabaseError> {
        self.write(move |transaction, now| bear_witness(transaction, now, member, &ledger)).await
    }

    pub(in crate::database) async fn next_epoch_after(
        &self,
        current: u64,
        above: BTreeMap<SaleId, u64>,
        sight: Sight,
    ) -> Result<Begun, DatabaseError> {
        self.write(move |transaction, now| {
            if let Some((member, ledger)) = sight.word() {
                bear_witness(transaction, now, member, ledger)?;
            }
            let present = life(transaction)?;
            if present.epoch != current {
                return Ok(Begun::Epoch(present.epoch));
            }
            if let Some(recorded) = present.ledger
                && sight.seen() != Some(&recorded)
                && let Some(witness) = witness(transaction, now, &recorded, sight.member)?
            {
                return Ok(Begun::Refused(witness));
            }
            raise_versions(transaction, now, &above)?;
            record(transaction, sight.seen())?;
            begin(transaction, current + 1).map(Begun::Epoch)
        })
        .await
    }
}

fn life(transaction: &Transaction<'_>) -> Result<Life, DatabaseError> {
    let recorded = "SELECT value FROM floodgate_meta WHERE name = 'ledger'";
    let ledger: Option<String> = transaction.query_row(recorded, [], |row| row.get(0)).optional()?;
    Ok(Life { epoch: epoch(transaction)?, ledger: ledger.as_deref().map(LedgerIdentity::new) })
}

fn record(transaction: &Transaction<'_>, ledger: Option<&LedgerIdentity>) -> Result<(), DatabaseError> {
    match ledger {
        Some(ledger) => transaction.execute(
            "INSERT INTO floodgate_meta (name, value) VALUES ('ledger', ?1)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            params![ledger.as_str()],
        )?,
        None => transaction.execute("DELETE FROM floodgate_meta WHERE name = 'ledger'", [])?,
    };
    Ok(())
}

fn bear_witness(
    transaction: &Transaction<'_>,
    now: Timestamp,
    member: Owner,
    ledger: &LedgerIdentity,
) -> Result<(), DatabaseError> {
    transaction.execute(
        "UPDATE floodgate_instances SET seen_ledger = ?2, seen_at = ?3 WHERE instance_id = ?1",
        params![member.to_string(), ledger.as_str(), now.to_string()],
    )?;
    Ok(())
}

/// Of several the one with the lowest id, so that every member hears the same name.
fn witness(
    transaction: &Transaction<'_>,
    now: Timestamp,
    recorded: &LedgerIdentity,
    but: Option<Owner>,
) -> Result<Option<Witness>, DatabaseError> {
    let [after, until] = fresh(now).map(|at| at.to_string());
    let but = but.map(|owner| owner.to_string()).unwrap_or_default();
    let found = transaction.query_row(
        "SELECT instance_id, place FROM floodgate_instances
         WHERE seen_ledger = ?1 AND seen_at > ?2 AND seen_at <= ?3 AND instance_id <> ?4 ORDER BY instance_id LIMIT 1",
        params![recorded.as_str(), after, until, but],
        |row| Ok((parsed::<Owner>(row, 0)?, row.get::<_, String>(1)?)),
    );
    let found = found.optional()?;
    Ok(found.map(|(by, place)| Witness { ledger: recorded.clone(), by, place }))
}

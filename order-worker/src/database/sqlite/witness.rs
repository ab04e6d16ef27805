//! The ledger of the present life in `floodgate_meta`, and what members see in `floodgate_instances`.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction, params};
use stock::{LedgerIdentity, Owner, SaleId, Timestamp};

use super::registry::{begin, epoch};
use super::sales::raise_versions;
use super::{DatabaseError, SqliteDatabase, parsed};
use crate::database::witness::{Word, fresh, refusal};
use crate::database::{Ahead, Begun, Life, Sight};

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
        above: BTreeMap<SaleId, Ahead>,
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
                && let Some(witness) = refusal(&recorded, words(transaction, now)?, &sight)
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

/// What members say that counts at `now`, in the order of their ids.
fn words(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Word>, DatabaseError> {
    let [after, until] = fresh(now).map(|at| at.to_string());
    let mut statement = transaction.prepare_cached(
        "SELECT instance_id, place, seen_ledger FROM floodgate_instances
         WHERE seen_ledger IS NOT NULL AND seen_at > ?1 AND seen_at <= ?2 ORDER BY instance_id",
    )?;
    let words = statement.query_map(params![after, until], |row| {
        let ledger = LedgerIdentity::new(&row.get::<_, String>(2)?);
        Ok(Word { by: parsed::<Owner>(row, 0)?, place: row.get(1)?, ledger })
    })?;
    Ok(words.collect::<Result<_, _>>()?)
}

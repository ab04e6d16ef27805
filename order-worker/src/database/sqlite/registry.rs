//! `floodgate_meta` (deployment, epoch) and `floodgate_instances`.

use queue::Opening;
use rusqlite::{OptionalExtension, Transaction, params};
use stock::{DeploymentId, Owner};

use super::{DatabaseError, SqliteDatabase, journal, parsed, signed, unsigned};
use crate::database::registry::{log_forgotten, nonce, opening};
use crate::database::{Instance, LedgerChange};
use crate::journal::Author;

impl SqliteDatabase {
    pub(in crate::database) async fn deployment(
        &self,
        candidate: DeploymentId,
    ) -> Result<DeploymentId, DatabaseError> {
        self.write(move |transaction, _| {
            transaction.execute(
                "INSERT INTO floodgate_meta (name, value) VALUES ('deployment', ?1) ON CONFLICT (name) DO NOTHING",
                params![candidate.to_string()],
            )?;
            Ok(deployment(transaction)?.unwrap_or(candidate))
        })
        .await
    }

    pub(in crate::database) async fn known_deployment(&self) -> Result<Option<DeploymentId>, DatabaseError> {
        self.read(deployment).await
    }

    pub(in crate::database) async fn epoch(&self) -> Result<u64, DatabaseError> {
        self.read(epoch).await
    }

    pub(in crate::database) async fn next_epoch(&self) -> Result<u64, DatabaseError> {
        self.write(|transaction, _| {
            let present = epoch(transaction)?;
            begin(transaction, present + 1)
        })
        .await
    }

    pub(in crate::database) async fn change_ledger(
        &self,
        beyond: u64,
        change: LedgerChange,
        author: Author,
    ) -> Result<u64, DatabaseError> {
        self.write(move |transaction, now| {
            let present = epoch(transaction)?;
            let next = present.max(beyond + 1);
            let place = match change {
                LedgerChange::Forget(owner) => transaction
                    .query_row(
                        "UPDATE floodgate_instances SET left_out_at = ?2 WHERE instance_id = ?1 AND left_out_at IS NULL
                         RETURNING place",
                        params![owner.to_string(), now.to_string()],
                        |row| row.get(0),
                    )
                    .optional()?,
                LedgerChange::Rebuild | LedgerChange::Adopt(_) => None,
            };
            if next == present && place.is_none() {
                return Ok(present);
            }
            begin(transaction, next)?;
            journal::append(transaction, &author, now, change.entry(present, next, place))?;
            Ok(next)
        })
        .await
    }

    pub(in crate::database) async fn report_merged(
        &self,
        owner: Owner,
        epoch: u64,
    ) -> Result<(), DatabaseError> {
        self.write(move |transaction, _| {
            transaction.execute(
                "UPDATE floodgate_instances SET merged_epoch = ?2 WHERE instance_id = ?1 AND merged_epoch < ?2",
                params![owner.to_string(), signed(epoch)],
            )?;
            Ok(())
        })
        .await
    }

    pub(in crate::database) async fn register_instance(
        &self,
        owner: Owner,
        place: String,
        engine: String,
        holds_promises: bool,
    ) -> Result<(), DatabaseError> {
        self.write(move |transaction, now| {
            transaction.execute(
                "INSERT INTO floodgate_instances (instance_id, place, registered_at, engine, holds_promises)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (instance_id)
                 DO UPDATE SET place = excluded.place, registered_at = excluded.registered_at, engine = excluded.engine,
                               holds_promises = excluded.holds_promises",
                params![owner.to_string(), place, now.to_string(), engine, holds_promises],
            )?;
            Ok(())
        })
        .await
    }

    pub(in crate::database) async fn register_opening(
        &self,
        owner: Owner,
        place: String,
        engine: String,
        before: Option<Opening>,
        opening: Opening,
    ) -> Result<bool, DatabaseError> {
        self.write(move |transaction, now| {
            let (was_generation, was_nonce) =
                before.map_or_else(Default::default, |before| (signed(before.generation), nonce(before)));
            let written = transaction.execute(
                "INSERT INTO floodgate_instances
                 (instance_id, place, registered_at, engine, holds_promises, generation, nonce)
                 VALUES (?1, ?2, ?3, ?4, 1, ?5, ?6)
                 ON CONFLICT (instance_id)
                 DO UPDATE SET place = excluded.place, registered_at = excluded.registered_at, engine = excluded.engine,
                               holds_promises = 1, generation = excluded.generation, nonce = excluded.nonce,
                               merged_epoch = iif(left_out_at IS NULL, merged_epoch, 0), left_out_at = NULL
                 WHERE (nonce = ?8 AND (generation = ?7 OR ?8 = ''))
                    OR (nonce = excluded.nonce AND generation = excluded.generation)",
                params![
                    owner.to_string(),
                    place,
                    now.to_string(),
                    engine,
                    signed(opening.generation),
                    nonce(opening),
                    was_generation,
                    was_nonce,
                ],
            )?;
            Ok(written == 1)
        })
        .await
    }

    pub(in crate::database) async fn deregister_instance(&self, owner: Owner) -> Result<(), DatabaseError> {
        self.write(move |transaction, _| {
            let forget = "DELETE FROM floodgate_instances WHERE instance_id = ?1";
            transaction.execute(forget, params![owner.to_string()])?;
            Ok(())
        })
        .await
    }

    pub(in crate::database) async fn leave_out_again(&self, owner: Owner) -> Result<(), DatabaseError> {
        self.write(move |transaction, now| {
            transaction.execute(
                "UPDATE floodgate_instances SET left_out_at = ?2 WHERE instance_id = ?1 AND left_out_at IS NULL",
                params![owner.to_string(), now.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    pub(in crate::database) async fn forget_log(
        &self,
        owner: Owner,
        author: Author,
    ) -> Result<(), DatabaseError> {
        self.write(move |transaction, now| {
            let forgotten = transaction.query_row(
                "DELETE FROM floodgate_instances WHERE instance_id = ?1 AND holds_promises = 0 RETURNING place",
                params![owner.to_string()],
                |row| row.get(0),
            );
            match forgotten.optional()? {
                Some(place) => journal::append(transaction, &author, now, log_forgotten(owner, place)),
                None => Ok(()),
            }
        })
        .await
    }

    pub(in crate::database) async fn instances(&self) -> Result<Vec<Instance>, DatabaseError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT instance_id, place, registered_at, merged_epoch, engine, holds_promises, generation, nonce,
                        left_out_at IS NOT NULL
                 FROM floodgate_instances ORDER BY instance_id",
            )?;
            let rows = statement.query_map([], |row| {
                let id: String = row.get(0)?;
                let owner = u64::from_str_radix(&id, 16).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
                })?;
                let opening = opening(unsigned(row, 6)?, &row.get::<_, String>(7)?).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(7, rusqlite::types::Type::Text, Box::new(error))
                })?;
                Ok(Instance {
                    opening,
                    left_out: row.get(8)?,
                    owner: Owner(owner),
                    place: row.get(1)?,
                    registered_at: parsed(row, 2)?,
                    merged_epoch: unsigned(row, 3)?,
                    engine: row.get(4)?,
                    holds_promises: row.get(5)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}

pub(super) fn begin(transaction: &Transaction<'_>, epoch: u64) -> Result<u64, DatabaseError> {
    transaction
        .execute("UPDATE floodgate_meta SET value = ?1 WHERE name = 'epoch'", params![epoch.to_string()])?;
    Ok(epoch)
}

fn deployment(transaction: &Transaction<'_>) -> Result<Option<DeploymentId>, DatabaseError> {
    let value: Option<String> = transaction
        .query_row("SELECT value FROM floodgate_meta WHERE name = 'deployment'", [], |row| row.get(0))
        .optional()?;
    let id = value.map(|value| value.parse()).transpose();
    id.map_err(|error| DatabaseError::Broken(format!("the recorded deployment: {error}")))
}

pub(super) fn epoch(transaction: &Transaction<'_>) -> Result<u64, DatabaseError> {
    let value: String =
        transaction
            .query_row("SELECT value FROM floodgate_meta WHERE name = 'epoch'", [], |row| row.get(0))?;
    value.parse().map_err(|_| DatabaseError::Broken("the recorded epoch is not a number".into()))
}

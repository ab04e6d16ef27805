//! `floodgate_workers`.

use rusqlite::params;
use stock::{Owner, Timestamp};

use super::{DatabaseError, SqliteDatabase, parsed};
use crate::database::shares::{Record, Recorded, carry_out};
use crate::database::{Beat, Renewed};

impl SqliteDatabase {
    pub(in crate::database) async fn renew_shares(&self, beat: Beat) -> Result<Vec<Renewed>, DatabaseError> {
        self.write(move |transaction, now| {
            transaction
                .execute("DELETE FROM floodgate_workers WHERE expires_at <= ?1", params![now.to_string()])?;
            let mut statement =
                transaction.prepare_cached("SELECT log_id, life, share_ppm FROM floodgate_workers WHERE work = ?1")?;
            let rows = statement.query_map([beat.work.as_str()], |row| {
                Ok((parsed(row, 0)?, Recorded { life: parsed::<Owner>(row, 1)?.0, ppm: row.get(2)? }))
            })?;
            let carried_out = carry_out(&beat, rows.collect::<Result<Record, _>>()?);
            let expires_at = Timestamp(now.0.saturating_add(beat.ttl_ms)).to_string();
            for (log, Recorded { life, ppm }) in carried_out.changed {
                transaction.execute(
                    "INSERT INTO floodgate_workers (log_id, life, share_ppm, expires_at, work) VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (work, log_id) DO UPDATE
                     SET life = excluded.life, share_ppm = excluded.share_ppm, expires_at = excluded.expires_at",
                    params![log.to_string(), hex(life), ppm, expires_at, beat.work.as_str()],
                )?;
            }
            Ok(carried_out.answers)
        })
        .await
    }

    pub(in crate::database) async fn is_drained(&self, log: Owner) -> Result<bool, DatabaseError> {
        self.write(move |transaction, now| {
            let look =
                "SELECT EXISTS (SELECT 1 FROM floodgate_workers WHERE work = 'drain' AND log_id = ?1 AND expires_at > ?2)";
            Ok(transaction.query_row(look, params![log.to_string(), now.to_string()], |row| row.get(0))?)
        })
        .await
    }

    pub(in crate::database) async fn end_shares(
        &self,
        life: u64,
        logs: Vec<Owner>,
    ) -> Result<(), DatabaseError> {
        self.write(move |transaction, _| {
            for log in &logs {
                let forget = "DELETE FROM floodgate_workers WHERE log_id = ?1 AND life = ?2";
                transaction.execute(forget, params![log.to_string(), hex(life)])?;
            }
            Ok(())
        })
        .await
    }
}

fn hex(life: u64) -> String {
    format!("{life:016x}")
}

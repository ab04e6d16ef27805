//! `floodgate_workers`.

use rusqlite::params;
use stock::Timestamp;

use super::{DatabaseError, SqliteDatabase, signed};
use crate::database::{Beat, Share};

impl SqliteDatabase {
    pub(in crate::database) async fn renew_share(&self, beat: Beat) -> Result<Share, DatabaseError> {
        self.write(move |transaction, now| {
            let worker = name(beat.worker);
            transaction
                .execute("DELETE FROM floodgate_workers WHERE expires_at <= ?1", params![now.to_string()])?;
            let others =
                "SELECT count(*), coalesce(sum(share_ppm), 0) FROM floodgate_workers WHERE worker_id <> ?1";
            let (others, held): (u32, i64) =
                transaction.query_row(others, params![worker], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let share = Share::of_one(others.saturating_add(1), u64::try_from(held).unwrap_or(u64::MAX));
            let expires_at = Timestamp(now.0.saturating_add(beat.ttl_ms)).to_string();
            transaction.execute(
                "INSERT INTO floodgate_workers (worker_id, share_ppm, expires_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (worker_id)
                 DO UPDATE SET share_ppm = excluded.share_ppm, expires_at = excluded.expires_at",
                params![worker, signed(u64::from(share.recorded_ppm(beat))), expires_at],
            )?;
            Ok(share)
        })
        .await
    }

    pub(in crate::database) async fn end_share(&self, worker: u64) -> Result<(), DatabaseError> {
        self.write(move |transaction, _| {
            transaction
                .execute("DELETE FROM floodgate_workers WHERE worker_id = ?1", params![name(worker)])?;
            Ok(())
        })
        .await
    }
}

fn name(worker: u64) -> String {
    format!("{worker:016x}")
}

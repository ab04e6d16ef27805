//! `floodgate_workers`. Beats take turns under the row that holds the epoch.

use stock::Timestamp;

use super::MysqlDatabase;
use super::session::{NOW, now};
use super::sql::get;
use crate::database::{Beat, DatabaseError, Share};

const TURN: &str = "SELECT value FROM floodgate_meta WHERE name = 'epoch' FOR UPDATE;";

impl MysqlDatabase {
    pub(in crate::database) async fn renew_share(&self, beat: Beat) -> Result<Share, DatabaseError> {
        self.write(async move |session| {
            let _: String = session.transact(TURN).await?.value()?;
            // Only now: what was waited for has passed.
            let now = now(&mut session.ask(NOW).await?)?;
            let worker = format!("{:016x}", beat.worker);
            let look = format!(
                "DELETE FROM floodgate_workers WHERE expires_at <= '{now}';
                 SELECT CAST(count(*) AS UNSIGNED), CAST(coalesce(sum(share_ppm), 0) AS UNSIGNED)
                 FROM floodgate_workers WHERE worker_id <> '{worker}';"
            );
            let (others, held) = match session.ask(&look).await?.rest().next() {
                Some(mut row) => (get::<u32>(&mut row, 0)?, get::<u64>(&mut row, 1)?),
                None => (0, 0),
            };
            let share = Share::of_one(others.saturating_add(1), held);
            let recorded = share.recorded_ppm(beat);
            let expires_at = Timestamp(now.0.saturating_add(beat.ttl_ms));
            let record = format!(
                "INSERT INTO floodgate_workers (worker_id, share_ppm, expires_at) VALUES ('{worker}', {recorded}, '{expires_at}')
                 ON DUPLICATE KEY UPDATE share_ppm = {recorded}, expires_at = '{expires_at}';"
            );
            session.commit(record).await?;
            Ok(share)
        })
        .await
    }

    pub(in crate::database) async fn end_share(&self, worker: u64) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let forget = format!("DELETE FROM floodgate_workers WHERE worker_id = '{worker:016x}';");
            session.transact(&forget).await?;
            session.commit_found().await
        })
        .await
    }
}

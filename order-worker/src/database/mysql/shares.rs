//! `floodgate_workers`. Beats take turns under the row that holds the epoch.

use stock::{Owner, Timestamp};

use super::MysqlDatabase;
use super::session::{NOW, now};
use super::sql::{get, list, parsed};
use crate::database::shares::{Record, Recorded, carry_out};
use crate::database::{Beat, DatabaseError, Renewed};

const TURN: &str = "SELECT value FROM floodgate_meta WHERE name = 'epoch' FOR UPDATE;";

impl MysqlDatabase {
    pub(in crate::database) async fn renew_shares(&self, beat: Beat) -> Result<Vec<Renewed>, DatabaseError> {
        self.write(async move |session| {
            let _: String = session.transact(TURN).await?.value()?;
            // Only now: what was waited for has passed.
            let now = now(&mut session.ask(NOW).await?)?;
            let look = format!(
                "DELETE FROM floodgate_workers WHERE expires_at <= '{now}';
                 SELECT log_id, life, share_ppm FROM floodgate_workers WHERE work = '{}';",
                beat.work.as_str()
            );
            let mut record = Record::new();
            for mut row in session.ask(&look).await?.rest() {
                let recorded = Recorded { life: parsed::<Owner>(&mut row, 1)?.0, ppm: get(&mut row, 2)? };
                record.insert(parsed(&mut row, 0)?, recorded);
            }
            let carried_out = carry_out(&beat, record);
            let expires_at = Timestamp(now.0.saturating_add(beat.ttl_ms));
            let rows = carried_out.changed.iter().map(|(log, Recorded { life, ppm })| {
                format!("('{log}', '{life:016x}', {ppm}, '{expires_at}', '{}')", beat.work.as_str())
            });
            let rows = rows.collect::<Vec<_>>().join(", ");
            let record = format!(
                "INSERT INTO floodgate_workers (log_id, life, share_ppm, expires_at, work) VALUES {rows}
                 ON DUPLICATE KEY UPDATE life = VALUES(life), share_ppm = VALUES(share_ppm), expires_at = VALUES(expires_at);"
            );
            session.commit(if rows.is_empty() { rows } else { record }).await?;
            Ok(carried_out.answers)
        })
        .await
    }

    pub(in crate::database) async fn is_drained(&self, log: Owner) -> Result<bool, DatabaseError> {
        self.read(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let look = format!(
                "SELECT EXISTS (SELECT 1 FROM floodgate_workers
                                WHERE work = 'drain' AND log_id = '{log}' AND expires_at > '{now}');"
            );
            session.ask(&look).await?.value()
        })
        .await
    }

    pub(in crate::database) async fn end_shares(
        &self,
        life: u64,
        logs: Vec<Owner>,
    ) -> Result<(), DatabaseError> {
        if logs.is_empty() {
            return Ok(());
        }
        self.write(async move |session| {
            let logs = list(logs.iter().map(ToString::to_string));
            let forget =
                format!("DELETE FROM floodgate_workers WHERE life = '{life:016x}' AND log_id IN ({logs});");
            session.transact(&forget).await?;
            session.commit_found().await
        })
        .await
    }
}

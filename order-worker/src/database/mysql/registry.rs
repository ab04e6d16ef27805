//! `floodgate_meta` (epoch) and `floodgate_instances`.

use stock::Owner;

use super::MysqlDatabase;
use super::fault::Fault;
use super::session::{NOW, Session, now};
use super::sql::{Text, get, parsed};
use crate::database::{DatabaseError, Instance};

/// Its row is there from the first version of the tables on.
const EPOCH: &str = "SELECT value FROM floodgate_meta WHERE name = 'epoch'";

impl MysqlDatabase {
    pub(in crate::database) async fn epoch(&self) -> Result<u64, DatabaseError> {
        self.read(async |session| session.ask(&format!("{EPOCH};")).await?.value()).await
    }

    pub(in crate::database) async fn next_epoch(&self) -> Result<u64, DatabaseError> {
        self.write(async |session| {
            let present = locked_epoch(session).await?;
            begin(session, present + 1).await
        })
        .await
    }

    pub(in crate::database) async fn next_epoch_after(&self, current: u64) -> Result<u64, DatabaseError> {
        self.write(async move |session| {
            let present = locked_epoch(session).await?;
            if present != current {
                session.commit_found().await?;
                return Ok(present);
            }
            begin(session, present + 1).await
        })
        .await
    }

    pub(in crate::database) async fn report_merged(
        &self,
        owner: Owner,
        epoch: u64,
    ) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let report = format!(
                "UPDATE floodgate_instances SET merged_epoch = {epoch}
                 WHERE instance_id = '{owner}' AND merged_epoch < {epoch};"
            );
            session.transact(&report).await?;
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn register_instance(
        &self,
        owner: Owner,
        place: String,
    ) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let place = Text(&place);
            let register = format!(
                "INSERT INTO floodgate_instances (instance_id, place, registered_at) VALUES ('{owner}', {place}, '{now}')
                 ON DUPLICATE KEY UPDATE place = {place}, registered_at = '{now}';"
            );
            session.transact(&register).await?;
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn deregister_instance(&self, owner: Owner) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let forget = format!("DELETE FROM floodgate_instances WHERE instance_id = '{owner}';");
            session.transact(&forget).await?;
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn instances(&self) -> Result<Vec<Instance>, DatabaseError> {
        self.read(async |session| {
            let all = "SELECT instance_id, place, registered_at, merged_epoch FROM floodgate_instances
                       ORDER BY instance_id;";
            let instances = session.ask(all).await?.rest().map(|mut row| {
                let row = &mut row;
                let id: String = get(row, 0)?;
                let owner = u64::from_str_radix(&id, 16)
                    .map_err(|_| DatabaseError::Broken(format!("an instance has the id {id:?}")))?;
                Ok(Instance {
                    owner: Owner(owner),
                    place: get(row, 1)?,
                    registered_at: parsed(row, 2)?,
                    merged_epoch: get(row, 3)?,
                })
            });
            instances.collect()
        })
        .await
    }
}

async fn locked_epoch(session: &mut Session) -> Result<u64, Fault> {
    session.transact(&format!("{EPOCH} FOR UPDATE;")).await?.value()
}

async fn begin(session: &mut Session, epoch: u64) -> Result<u64, Fault> {
    let statement = format!("UPDATE floodgate_meta SET value = '{epoch}' WHERE name = 'epoch';");
    session.commit(statement).await?;
    Ok(epoch)
}

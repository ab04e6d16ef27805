//! `floodgate_meta` (deployment, epoch) and `floodgate_instances`.

use queue::Opening;
use stock::{DeploymentId, Owner};

use super::fault::Fault;
use super::session::{NOW, Session, now};
use super::sql::{Answers, Text, get, parsed};
use super::{MysqlDatabase, journal};
use crate::database::registry::{log_forgotten, nonce, opening};
use crate::database::{DatabaseError, Instance, LedgerChange};
use crate::journal::Author;

/// Its row is there from the first version of the tables on.
const EPOCH: &str = "SELECT value FROM floodgate_meta WHERE name = 'epoch'";

/// Its row is made by the first process that ties a ledger to the database.
const DEPLOYMENT: &str = "SELECT value FROM floodgate_meta WHERE name = 'deployment';";

impl MysqlDatabase {
    pub(in crate::database) async fn deployment(
        &self,
        candidate: DeploymentId,
    ) -> Result<DeploymentId, DatabaseError> {
        self.write(async move |session| {
            // Whoever comes second waits for the first one's commit and changes nothing.
            let make = format!(
                "INSERT INTO floodgate_meta (name, value) VALUES ('deployment', '{candidate}')
                 ON DUPLICATE KEY UPDATE value = value;"
            );
            session.transact(&make).await?;
            let made = deployment(&mut session.transact(DEPLOYMENT).await?)?;
            session.commit_found().await?;
            Ok(made.unwrap_or(candidate))
        })
        .await
    }

    pub(in crate::database) async fn known_deployment(&self) -> Result<Option<DeploymentId>, DatabaseError> {
        self.read(async |session| deployment(&mut session.ask(DEPLOYMENT).await?)).await
    }

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

    pub(in crate::database) async fn change_ledger(
        &self,
        beyond: u64,
        change: LedgerChange,
        author: Author,
    ) -> Result<u64, DatabaseError> {
        self.write(async move |session| {
            let present = locked_epoch(session).await?;
            let now = now(&mut session.transact(NOW).await?)?;
            let next = present.max(beyond + 1);
            let (mut place, mut statements) = (None, begin_statement(next));
            if let LedgerChange::Forget(owner) = &change {
                let row = format!("WHERE instance_id = '{owner}' AND left_out_at IS NULL");
                let find = format!("SELECT place FROM floodgate_instances {row} FOR UPDATE;");
                let found = session.transact(&find).await?.row();
                place = found.map(|mut row| get::<String>(&mut row, 0)).transpose()?;
                statements += &format!("UPDATE floodgate_instances SET left_out_at = '{now}' {row};");
            }
            if next == present && place.is_none() {
                session.commit_found().await?;
                return Ok(present);
            }
            let entry = change.entry(present, next, place);
            journal::commit(session, &statements, &author, now, entry).await?;
            Ok(next)
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
        engine: String,
        holds_promises: bool,
    ) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let (place, engine, holds) = (Text(&place), Text(&engine), u8::from(holds_promises));
            let register = format!(
                "INSERT INTO floodgate_instances (instance_id, place, registered_at, engine, holds_promises)
                 VALUES ('{owner}', {place}, '{now}', {engine}, {holds})
                 ON DUPLICATE KEY UPDATE place = {place}, registered_at = '{now}', engine = {engine}, holds_promises = {holds};"
            );
            session.transact(&register).await?;
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn register_opening(
        &self,
        owner: Owner,
        place: String,
        engine: String,
        before: Option<Opening>,
        new: Opening,
    ) -> Result<bool, DatabaseError> {
        self.write(async move |session| {
            let find = format!(
                "SELECT generation, nonce, left_out_at IS NOT NULL FROM floodgate_instances
                 WHERE instance_id = '{owner}' FOR UPDATE;"
            );
            let mut answers = session.transact(&(find + NOW)).await?;
            let row = answers.row();
            let now = now(&mut answers)?;
            let (place, engine) = (Text(&place), Text(&engine));
            let (generation, nonce) = (new.generation, nonce(new));
            let Some(mut row) = row else {
                // An absent row cannot be locked: of two that register at once one meets the other's row, and begins anew.
                let register = format!(
                    "INSERT INTO floodgate_instances
                     (instance_id, place, registered_at, engine, holds_promises, generation, nonce)
                     VALUES ('{owner}', {place}, '{now}', {engine}, 1, {generation}, '{nonce}');"
                );
                session.commit(register).await?;
                return Ok(true);
            };
            let (found, was_left_out): (_, bool) =
                (opening(get(&mut row, 0)?, &get::<String>(&mut row, 1)?)?, get(&mut row, 2)?);
            if found != before && found != Some(new) {
                session.commit_found().await?;
                return Ok(false);
            }
            let merged = if was_left_out { "merged_epoch = 0, " } else { "" };
            let register = format!(
                "UPDATE floodgate_instances
                 SET {merged}place = {place}, registered_at = '{now}', engine = {engine}, holds_promises = 1,
                     generation = {generation}, nonce = '{nonce}', left_out_at = NULL
                 WHERE instance_id = '{owner}';"
            );
            session.commit(register).await?;
            Ok(true)
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

    pub(in crate::database) async fn leave_out_again(&self, owner: Owner) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let leave_out = format!(
                "UPDATE floodgate_instances SET left_out_at = '{now}' WHERE instance_id = '{owner}' AND left_out_at IS NULL;"
            );
            session.transact(&leave_out).await?;
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn forget_log(
        &self,
        owner: Owner,
        author: Author,
    ) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let now = now(&mut session.transact(NOW).await?)?;
            let row =
                format!("FROM floodgate_instances WHERE instance_id = '{owner}' AND holds_promises = 0");
            let found = session.transact(&format!("SELECT place {row} FOR UPDATE;")).await?.row();
            match found.map(|mut row| get::<String>(&mut row, 0)).transpose()? {
                Some(place) => {
                    let (delete, entry) = (format!("DELETE {row};"), log_forgotten(owner, place));
                    journal::commit(session, &delete, &author, now, entry).await
                }
                None => session.commit_found().await,
            }
        })
        .await
    }

    pub(in crate::database) async fn instances(&self) -> Result<Vec<Instance>, DatabaseError> {
        self.read(async |session| {
            let all = "SELECT instance_id, place, registered_at, merged_epoch, engine, holds_promises, generation, nonce,
                              left_out_at IS NOT NULL
                       FROM floodgate_instances ORDER BY instance_id;";
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
                    engine: get(row, 4)?,
                    holds_promises: get(row, 5)?,
                    opening: opening(get(row, 6)?, &get::<String>(row, 7)?)?,
                    left_out: get(row, 8)?,
                })
            });
            instances.collect()
        })
        .await
    }
}

fn deployment(answers: &mut Answers) -> Result<Option<DeploymentId>, Fault> {
    answers.row().map(|mut row| parsed(&mut row, 0)).transpose()
}

pub(super) async fn locked_epoch(session: &mut Session) -> Result<u64, Fault> {
    session.transact(&format!("{EPOCH} FOR UPDATE;")).await?.value()
}

async fn begin(session: &mut Session, epoch: u64) -> Result<u64, Fault> {
    session.commit(begin_statement(epoch)).await?;
    Ok(epoch)
}

pub(super) fn begin_statement(epoch: u64) -> String {
    format!("UPDATE floodgate_meta SET value = '{epoch}' WHERE name = 'epoch';")
}

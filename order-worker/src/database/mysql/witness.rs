//! The ledger of the present life in `floodgate_meta`, and what members see in `floodgate_instances`.

use std::collections::BTreeMap;

use stock::{LedgerIdentity, Owner, SaleId};

use super::MysqlDatabase;
use super::fault::Fault;
use super::registry::{begin_statement, locked_epoch};
use super::sales::raise_versions;
use super::session::{NOW, Session, now};
use super::sql::{Answers, Text, get, parsed};
use crate::database::witness::{Word, fresh, refusal};
use crate::database::{Ahead, Begun, DatabaseError, Life, Sight};

/// Its row is made by the first life on a ledger that outlives its process.
const LEDGER: &str = "SELECT value FROM floodgate_meta WHERE name = 'ledger'";

impl MysqlDatabase {
    pub(in crate::database) async fn life(&self) -> Result<Life, DatabaseError> {
        self.read(async |session| {
            // One statement, so that both are of one moment.
            let both = "SELECT epoch.value, ledger.value FROM floodgate_meta epoch
                        LEFT JOIN floodgate_meta ledger ON ledger.name = 'ledger' WHERE epoch.name = 'epoch';";
            let row = session.ask(both).await?.row();
            let mut row = row.ok_or_else(|| DatabaseError::Broken("no epoch is recorded".into()))?;
            let ledger: Option<String> = get(&mut row, 1)?;
            Ok(Life { epoch: parsed(&mut row, 0)?, ledger: ledger.as_deref().map(LedgerIdentity::new) })
        })
        .await
    }

    pub(in crate::database) async fn bear_witness(
        &self,
        member: Owner,
        ledger: LedgerIdentity,
    ) -> Result<(), DatabaseError> {
        self.write(async move |session| session.at_once(bear_witness(member, &ledger)).await.map(drop)).await
    }

    pub(in crate::database) async fn next_epoch_after(
        &self,
        current: u64,
        above: BTreeMap<SaleId, Ahead>,
        sight: Sight,
    ) -> Result<Begun, DatabaseError> {
        self.write(async move |session| {
            // Members that want the same wait here for the first one's commit, and then read its result.
            let present = locked_epoch(session).await?;
            let word = sight.word().map(|(member, ledger)| bear_witness(member, ledger)).unwrap_or_default();
            if present != current {
                return end(session, word, Begun::Epoch(present)).await;
            }
            let recorded = recorded(&mut session.ask(&format!("{LEDGER};")).await?)?;
            if let Some(recorded) = recorded
                && sight.seen() != Some(&recorded)
                && let Some(witness) = refusal(&recorded, words(session).await?, &sight)
            {
                return end(session, word, Begun::Refused(witness)).await;
            }
            raise_versions(session, &above).await?;
            let next = current + 1;
            session.commit(word + &record(sight.seen()) + &begin_statement(next)).await?;
            Ok(Begun::Epoch(next))
        })
        .await
    }
}

/// Nothing is begun, but the member's own word is written.
async fn end(session: &mut Session, word: String, begun: Begun) -> Result<Begun, Fault> {
    if !word.is_empty() {
        session.ask(&word).await?;
    }
    session.commit_found().await?;
    Ok(begun)
}

fn recorded(answers: &mut Answers) -> Result<Option<LedgerIdentity>, Fault> {
    let ledger: Option<String> = answers.row().map(|mut row| get(&mut row, 0)).transpose()?;
    Ok(ledger.as_deref().map(LedgerIdentity::new))
}

fn record(ledger: Option<&LedgerIdentity>) -> String {
    match ledger {
        Some(ledger) => {
            let ledger = Text(ledger.as_str());
            format!(
                "INSERT INTO floodgate_meta (name, value) VALUES ('ledger', {ledger}) ON DUPLICATE KEY UPDATE value = {ledger};"
            )
        }
        None => "DELETE FROM floodgate_meta WHERE name = 'ledger';".to_owned(),
    }
}

fn bear_witness(member: Owner, ledger: &LedgerIdentity) -> String {
    let ledger = Text(ledger.as_str());
    // The server's own time, as a timestamp is written everywhere: three decimals of the six.
    format!(
        "UPDATE floodgate_instances SET seen_ledger = {ledger},
             seen_at = CONCAT(LEFT(DATE_FORMAT(NOW(3), '%Y-%m-%dT%H:%i:%s.%f'), 23), 'Z')
         WHERE instance_id = '{member}';"
    )
}

/// What members say that counts, in the order of their ids.
async fn words(session: &mut Session) -> Result<Vec<Word>, Fault> {
    // Only now: what was waited for has passed.
    let [after, until] = fresh(now(&mut session.ask(NOW).await?)?);
    let look = format!(
        "SELECT instance_id, place, seen_ledger FROM floodgate_instances
         WHERE seen_ledger IS NOT NULL AND seen_at > '{after}' AND seen_at <= '{until}' ORDER BY instance_id;"
    );
    let rows = session.ask(&look).await?.rows();
    rows.into_iter()
        .map(|mut row| {
            let ledger: String = get(&mut row, 2)?;
            let ledger = LedgerIdentity::new(&ledger);
            Ok(Word { by: parsed(&mut row, 0)?, place: get(&mut row, 1)?, ledger })
        })
        .collect()
}

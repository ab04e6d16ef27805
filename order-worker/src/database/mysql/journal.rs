//! `floodgate_journal`, and its end in `floodgate_meta`, whose row is the lock under which rows are chained.

use mysql_async::Row;
use stock::Timestamp;

use super::MysqlDatabase;
use super::fault::Fault;
use super::session::Session;
use super::sql::{Answers, Text, TextOrNull, get};
use crate::database::DatabaseError;
use crate::database::journal::last_row;
use crate::journal::{Author, ChainEnd, Change, Head, JournalKey, Record};

/// Its row is there from the first version of the tables on.
const LOCK: &str = "SELECT value FROM floodgate_meta WHERE name = 'journal' FOR UPDATE;";

impl MysqlDatabase {
    pub(in crate::database) async fn tie_journal(&self, key: JournalKey) -> Result<(), DatabaseError> {
        self.write(async move |session| {
            let tied = end(session.transact(LOCK).await?)?.tied_to(&key).map_err(DatabaseError::from)?;
            session.transact(&keep(&tied)).await?;
            // One who finds it tied answers for another's commit.
            session.commit_found().await
        })
        .await
    }

    pub(in crate::database) async fn journal(
        &self,
        after: u64,
        rows: usize,
    ) -> Result<Vec<Record>, DatabaseError> {
        self.read(async move |session| {
            let page = format!(
                "SELECT seq, at, operator, role, action, subject, `before`, after, reason, prev_hash, hash
                 FROM floodgate_journal WHERE seq > {after} ORDER BY seq LIMIT {rows};"
            );
            session.ask(&page).await?.rest().map(record).collect()
        })
        .await
    }

    pub(in crate::database) async fn journal_head(&self) -> Result<(Head, Head), DatabaseError> {
        self.read(async |session| {
            let both = "SELECT m.value, j.seq, j.hash FROM floodgate_meta AS m
                        LEFT JOIN floodgate_journal AS j ON j.seq = (SELECT MAX(seq) FROM floodgate_journal)
                        WHERE m.name = 'journal';";
            let row = session.ask(both).await?.row();
            let mut row = row.ok_or_else(|| DatabaseError::from(crate::journal::NoHash))?;
            let seq: Option<u64> = get(&mut row, 1)?;
            let last = match seq {
                Some(seq) => Some((seq, get(&mut row, 2)?)),
                None => None,
            };
            Ok((parsed_end(&mut row)?.head, last_row(last)))
        })
        .await
    }
}

/// Carries out `statements` and adds the author's row behind the last one; commits both. The end's lock is taken after all others, so
/// that no changer waits for one that waits for it.
///
/// A crash before COMMIT leaves neither the change nor its row, one after it both.
pub(super) async fn commit(
    session: &mut Session,
    statements: &str,
    author: &Author,
    now: Timestamp,
    change: Change,
) -> Result<(), Fault> {
    let end = end(session.transact(&format!("{statements}{LOCK}")).await?)?;
    let (record, end) = author.record(&end, now.to_string(), change).map_err(DatabaseError::from)?;
    session.commit(insert(&record) + &keep(&end)).await
}

/// Of the last statement of several, which is [`LOCK`].
fn end(answers: Answers) -> Result<ChainEnd, Fault> {
    let mut row = answers.rest().last().ok_or_else(|| DatabaseError::from(crate::journal::NoHash))?;
    parsed_end(&mut row)
}

fn parsed_end(row: &mut Row) -> Result<ChainEnd, Fault> {
    let end: String = get(row, 0)?;
    Ok(end.parse::<ChainEnd>().map_err(DatabaseError::from)?)
}

fn keep(end: &ChainEnd) -> String {
    format!("UPDATE floodgate_meta SET value = {} WHERE name = 'journal';", Text(&end.to_string()))
}

fn insert(record: &Record) -> String {
    format!(
        "INSERT INTO floodgate_journal (seq, at, operator, role, action, subject, `before`, after, reason, prev_hash, hash)
         VALUES ({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {});",
        record.seq,
        Text(&record.at),
        Text(&record.operator),
        Text(&record.role),
        Text(&record.action),
        Text(&record.subject),
        TextOrNull(record.before.as_deref()),
        TextOrNull(record.after.as_deref()),
        TextOrNull(record.reason.as_deref()),
        Text(&record.prev_hash),
        Text(&record.hash),
    )
}

fn record(mut row: Row) -> Result<Record, Fault> {
    let row = &mut row;
    Ok(Record {
        seq: get(row, 0)?,
        at: get(row, 1)?,
        operator: get(row, 2)?,
        role: get(row, 3)?,
        action: get(row, 4)?,
        subject: get(row, 5)?,
        before: get(row, 6)?,
        after: get(row, 7)?,
        reason: get(row, 8)?,
        prev_hash: get(row, 9)?,
        hash: get(row, 10)?,
    })
}

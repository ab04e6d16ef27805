//! `floodgate_journal`, and its end in `floodgate_meta`. One writer at a time is the lock under which rows are chained.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use stock::Timestamp;

use super::{DatabaseError, SqliteDatabase, limit, signed, unsigned};
use crate::database::journal::last_row;
use crate::journal::{Author, ChainEnd, Change, Head, JournalKey, Record};

impl SqliteDatabase {
    pub(in crate::database) async fn tie_journal(&self, key: JournalKey) -> Result<(), DatabaseError> {
        self.write(move |transaction, _| {
            let tied = end(transaction)?.tied_to(&key)?;
            keep(transaction, &tied)
        })
        .await
    }

    pub(in crate::database) async fn journal(
        &self,
        after: u64,
        rows: usize,
    ) -> Result<Vec<Record>, DatabaseError> {
        self.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                r#"SELECT seq, at, operator, role, action, subject, "before", "after", reason, prev_hash, hash
                   FROM floodgate_journal WHERE seq > ?1 ORDER BY seq LIMIT ?2"#,
            )?;
            let page = statement.query_map(params![signed(after), limit(rows)], record)?;
            Ok(page.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(in crate::database) async fn journal_head(&self) -> Result<(Head, Head), DatabaseError> {
        self.read(|transaction| {
            let last = "SELECT seq, hash FROM floodgate_journal ORDER BY seq DESC LIMIT 1";
            let last = transaction.query_row(last, [], |row| Ok((unsigned(row, 0)?, row.get(1)?)));
            Ok((end(transaction)?.head, last_row(last.optional()?)))
        })
        .await
    }
}

/// Adds the author's row behind the last one, in the transaction of the change itself.
pub(super) fn append(
    transaction: &Transaction<'_>,
    author: &Author,
    now: Timestamp,
    change: Change,
) -> Result<(), DatabaseError> {
    let (record, end) = author.record(&end(transaction)?, now.to_string(), change)?;
    transaction
        .prepare_cached(
            r#"INSERT INTO floodgate_journal (seq, at, operator, role, action, subject, "before", "after", reason, prev_hash, hash)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"#,
        )?
        .execute(params![
            signed(record.seq),
            record.at,
            record.operator,
            record.role,
            record.action,
            record.subject,
            record.before,
            record.after,
            record.reason,
            record.prev_hash,
            record.hash,
        ])?;
    keep(transaction, &end)
}

fn end(transaction: &Transaction<'_>) -> Result<ChainEnd, DatabaseError> {
    let end = "SELECT value FROM floodgate_meta WHERE name = 'journal'";
    let end: String = transaction.query_row(end, [], |row| row.get(0))?;
    Ok(end.parse::<ChainEnd>()?)
}

fn keep(transaction: &Transaction<'_>, end: &ChainEnd) -> Result<(), DatabaseError> {
    let keep = "UPDATE floodgate_meta SET value = ?1 WHERE name = 'journal'";
    transaction.execute(keep, params![end.to_string()])?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        seq: unsigned(row, 0)?,
        at: row.get(1)?,
        operator: row.get(2)?,
        role: row.get(3)?,
        action: row.get(4)?,
        subject: row.get(5)?,
        before: row.get(6)?,
        after: row.get(7)?,
        reason: row.get(8)?,
        prev_hash: row.get(9)?,
        hash: row.get(10)?,
    })
}

//! Whether the journal's rows are the ones that were written, all of them and in this order. Reads nothing: it is given the rows.

use hmac::Mac;

use super::{Hash, Head, JournalKey, Record};

/// The first thing that is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Rows are missing, doubled, or stand elsewhere.
    #[error("journal row {expected} is not there: row {found} follows where it should stand")]
    Missing {
        /// The row that should come.
        expected: u64,
        /// The row that came.
        found: u64,
    },
    /// The row does not fit its MAC, or not the row before it.
    #[error(
        "journal row {seq} was changed after it was written, or the secret is not the one that it was written with"
    )]
    Changed {
        /// Which.
        seq: u64,
    },
    /// The chain was whole up to a head that is known from elsewhere, and another row stands in its place.
    #[error(
        "journal row {seq} is another one than the head that was kept elsewhere names: the chain was written anew with the secret"
    )]
    Rewritten {
        /// Which.
        seq: u64,
    },
    /// The chain ends before a head that is known from elsewhere.
    #[error("the journal ends with row {found}, though row {known} was written: its end was cut off")]
    CutOff {
        /// The last row.
        found: u64,
        /// The known head's.
        known: u64,
    },
}

/// Follows a chain from its first row, a page at a time.
#[derive(Debug)]
pub struct Chain {
    key: JournalKey,
    known: Vec<Head>,
    head: Head,
}

impl Chain {
    /// Before the first row. `known` are heads kept elsewhere, such as in logs.
    #[must_use]
    pub fn new(key: JournalKey, known: Vec<Head>) -> Self {
        Self { key, known, head: Head::default() }
    }

    /// The last row that was followed.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// Goes one row on.
    ///
    /// # Errors
    /// [`Broken`]; what follows cannot be judged then.
    pub fn follow(&mut self, record: &Record) -> Result<(), Broken> {
        let (seq, expected) = (record.seq, self.head.seq + 1);
        if seq != expected {
            return Err(Broken::Missing { expected, found: seq });
        }
        let hash: Hash = record.hash.parse().map_err(|_| Broken::Changed { seq })?;
        // In constant time: how much of a forged MAC was right is not to be told by how long this takes.
        let is_right = self.key.mac(record).verify_slice(&hash.0).is_ok();
        if !is_right || record.prev_hash != self.head.hash.to_string() {
            return Err(Broken::Changed { seq });
        }
        self.head = Head { seq, hash };
        match self.known.iter().find(|known| known.seq == seq) {
            Some(known) if known.hash != hash => Err(Broken::Rewritten { seq }),
            _ => Ok(()),
        }
    }

    /// The end of the rows: answers with the last one.
    ///
    /// # Errors
    /// [`Broken::CutOff`].
    pub fn finish(self) -> Result<Head, Broken> {
        let known = self.known.iter().map(|known| known.seq).max().unwrap_or(0);
        if known > self.head.seq {
            return Err(Broken::CutOff { found: self.head.seq, known });
        }
        Ok(self.head)
    }
}

/// Follows a whole chain.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn verify_chain<'r>(
    key: &JournalKey,
    records: impl IntoIterator<Item = &'r Record>,
    known: &[Head],
) -> Result<Head, Broken> {
    let mut chain = Chain::new(key.clone(), known.to_vec());
    records.into_iter().try_for_each(|record| chain.follow(record))?;
    chain.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use serde_json::json;

    use super::super::{Action, ChainEnd, Change};
    use super::*;

    fn key() -> JournalKey {
        JournalKey::new(&[7; 32])
    }

    fn written(rows: u64) -> Vec<Record> {
        let author = key().operator("小明").because("a reason");
        let mut end: ChainEnd = "0".parse().unwrap();
        let write = |n| {
            let after = (n % 2 == 0).then(|| json!({ "version": n }));
            let change = Change { action: Action::SalePause, subject: format!("s{n}"), before: None, after };
            let (record, next) =
                author.record(&end, format!("2026-01-01T00:00:{n:02}.000Z"), change).unwrap();
            end = next.to_string().parse().unwrap();
            assert_eq!(end, next, "as it was kept");
            record
        };
        (0..rows).map(write).collect()
    }

    fn head(record: &Record) -> Head {
        Head { seq: record.seq, hash: record.hash.parse().unwrap() }
    }

    #[test]
    fn an_untouched_chain_is_whole_from_any_known_head_on() {
        let rows = written(9);
        let heads: Vec<Head> = rows.iter().map(head).collect();
        assert_eq!(verify_chain(&key(), &rows, &heads), Ok(heads[8]));
        assert_eq!(verify_chain(&key(), &[], &[]), Ok(Head::default()));
        assert_eq!(rows[0].prev_hash, "0".repeat(64));
        assert_eq!(rows[8].seq, 9);
    }

    #[test]
    fn every_field_is_under_the_mac() {
        let rows = written(4);
        let changes: [fn(&mut Record); 12] = [
            |row| row.at.push('0'),
            |row| row.operator = "admin".into(),
            |row| row.role = "config".into(),
            |row| row.action = "sale resume".into(),
            |row| row.subject.push('x'),
            |row| row.before = Some(String::new()),
            |row| row.after = None,
            |row| row.after = Some("{\"version\":3}".into()),
            |row| row.reason = None,
            |row| row.prev_hash = "0".repeat(64),
            |row| row.hash = "f".repeat(64),
            |row| row.hash = "no hash".into(),
        ];
        for (n, change) in changes.into_iter().enumerate() {
            let mut rows = rows.clone();
            change(&mut rows[2]);
            assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Changed { seq: 3 }), "change {n}");
        }
    }

    #[test]
    fn what_moves_from_one_field_into_the_next_is_seen() {
        let mut rows = written(1);
        rows[0].operator.push_str("oper");
        rows[0].role = "ate".into();
        assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Changed { seq: 1 }));
        let mut rows = written(1);
        (rows[0].before, rows[0].after) = (rows[0].after.take(), None);
        assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Changed { seq: 1 }));
    }

    #[test]
    fn a_row_removed_from_the_middle_is_missing_even_if_the_others_close_up() {
        let mut rows = written(5);
        rows.remove(2);
        assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Missing { expected: 3, found: 4 }));
        (rows[2].seq, rows[3].seq) = (3, 4);
        assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Changed { seq: 3 }));
    }

    #[test]
    fn rows_that_change_places_are_seen() {
        let mut rows = written(5);
        rows.swap(1, 2);
        assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Missing { expected: 2, found: 3 }));
        (rows[1].seq, rows[2].seq) = (2, 3);
        assert_eq!(verify_chain(&key(), &rows, &[]), Err(Broken::Changed { seq: 2 }));
    }

    #[test]
    fn an_end_that_was_cut_off_shows_against_a_known_head_alone() {
        let mut rows = written(5);
        let known = head(&rows[4]);
        rows.truncate(3);
        assert_eq!(verify_chain(&key(), &rows, &[]).unwrap().seq, 3);
        assert_eq!(verify_chain(&key(), &rows, &[known]), Err(Broken::CutOff { found: 3, known: 5 }));
    }

    #[test]
    fn a_chain_written_anew_does_not_pass_a_known_head() {
        let known = Head { seq: 2, hash: "ab".repeat(32).parse().unwrap() };
        assert_eq!(verify_chain(&key(), &written(4), &[known]), Err(Broken::Rewritten { seq: 2 }));
    }

    #[test]
    fn another_secret_neither_verifies_nor_goes_on() {
        let (rows, other) = (written(2), JournalKey::new(&[8; 32]));
        assert_eq!(verify_chain(&other, &rows, &[]), Err(Broken::Changed { seq: 1 }));
        let end: ChainEnd = format!("{} {}", head(&rows[1]), key().id()).parse().unwrap();
        let change = Change { action: Action::SaleEnd, subject: "s".into(), before: None, after: None };
        let refused = other.operator("admin").record(&end, "now".into(), change).unwrap_err();
        let words = refused.to_string();
        assert!(words.contains(&key().id()) && words.contains(&other.id()), "{words}");
        assert!(words.contains("admin.journal_secret"), "{words}");
    }

    #[test]
    fn a_secret_never_shows() {
        let key = JournalKey::new(b"correct-horse-battery-staple-correct");
        let shown = format!("{key:?} {:?} {}", key.operator("admin"), key.id());
        assert!(!shown.contains("horse") && shown.contains("***"), "{shown}");
    }

    #[test]
    fn names_and_reasons_are_cut_at_what_their_columns_hold() {
        let author = key().operator(&"名".repeat(300)).because(&"因".repeat(300));
        assert_eq!(author.operator().chars().count(), 64);
        assert_eq!(author.reason().unwrap().chars().count(), 255);
    }
}

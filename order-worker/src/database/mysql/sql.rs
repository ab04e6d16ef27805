//! Statements as text, and rows as values. Everything that did not come from this crate enters a statement through [`Text`].
//!
//! Text, not prepared statements: several statements travel in one packet, so that a batch takes two round trips, and a
//! batch of any size needs no statement of its own to be prepared.

use std::fmt::{self, Write};
use std::str::FromStr;

use mysql_async::Row;
use mysql_async::prelude::FromValue;
use stock::OrderId;

use super::fault::Fault;
use crate::database::DatabaseError;

/// A literal that no `sql_mode` and no character set reads otherwise: quoted only if no byte of it could mean anything inside
/// quotes, else in hexadecimal.
pub(super) struct Text<'t>(pub(super) &'t str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\'' && byte != b'\\') {
            return write!(f, "'{}'", self.0);
        }
        f.write_str("_utf8mb4 x'")?;
        for byte in self.0.bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_char('\'')
    }
}

/// A literal, or NULL.
pub(super) struct TextOrNull<'t>(pub(super) Option<&'t str>);

impl fmt::Display for TextOrNull<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => Text(text).fmt(f),
            None => f.write_str("NULL"),
        }
    }
}

/// Literals with commas between them.
pub(super) fn list<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let mut list = String::new();
    for text in texts {
        let comma = if list.is_empty() { "" } else { "," };
        // Writing into a String does not fail.
        let _ = write!(list, "{comma}{}", Text(text.as_ref()));
    }
    list
}

/// Order ids with commas between them.
pub(super) fn ids<'o>(orders: impl IntoIterator<Item = &'o OrderId>) -> String {
    list(orders.into_iter().map(OrderId::to_string))
}

/// The rows of one statement after another.
pub(super) struct Answers(std::vec::IntoIter<Vec<Row>>);

impl Answers {
    pub(super) fn new(rows: Vec<Vec<Row>>) -> Self {
        Self(rows.into_iter())
    }

    /// The next statement's rows.
    pub(super) fn rows(&mut self) -> Vec<Row> {
        self.0.next().unwrap_or_default()
    }

    /// The rows of all statements left.
    pub(super) fn rest(self) -> impl Iterator<Item = Row> {
        self.0.flatten()
    }

    /// The next statement's first row, if it has one.
    pub(super) fn row(&mut self) -> Option<Row> {
        self.rows().into_iter().next()
    }

    /// The only value of the next statement's only row.
    pub(super) fn value<T: FromValue>(&mut self) -> Result<T, Fault> {
        let mut row = self.row().ok_or_else(|| broken("a statement has no answer"))?;
        get(&mut row, 0)
    }
}

fn broken(text: &str) -> Fault {
    Fault::Final(DatabaseError::Broken(text.to_owned()))
}

/// A column's value.
pub(super) fn get<T: FromValue>(row: &mut Row, column: usize) -> Result<T, Fault> {
    row.take_opt::<T, _>(column)
        .and_then(Result::ok)
        .ok_or_else(|| broken(&format!("column {column} of a row holds what it must not")))
}

/// A column that holds text of ours.
pub(super) fn parsed<T: FromStr>(row: &mut Row, column: usize) -> Result<T, Fault>
where
    T::Err: fmt::Display,
{
    let text: String = get(row, column)?;
    text.parse().map_err(|error| broken(&format!("{text:?} in a row: {error}")))
}

/// A column that may hold text of ours.
pub(super) fn parsed_option<T: FromStr>(row: &mut Row, column: usize) -> Result<Option<T>, Fault>
where
    T::Err: fmt::Display,
{
    let text: Option<String> = get(row, column)?;
    let parse = |text: String| text.parse().map_err(|error| broken(&format!("{text:?} in a row: {error}")));
    text.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_could_end_a_literal_is_quoted() {
        for (text, literal) in [
            ("", "''"),
            ("demo 2026-11-11T12:00:00.000Z", "'demo 2026-11-11T12:00:00.000Z'"),
            ("{\"a\":[1;2]} -- /* */ %_`", "'{\"a\":[1;2]} -- /* */ %_`'"),
            ("'", "_utf8mb4 x'27'"),
            ("a\\", "_utf8mb4 x'615c'"),
            ("a\0\n", "_utf8mb4 x'61000a'"),
            ("é", "_utf8mb4 x'c3a9'"),
        ] {
            assert_eq!(Text(text).to_string(), literal);
        }
        assert_eq!(TextOrNull(None).to_string(), "NULL");
        assert_eq!(list(["a", "'"]), "'a',_utf8mb4 x'27'");
    }
}

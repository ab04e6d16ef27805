//! Tables for people, JSON for programs.

use serde::Serialize;
use serde_json::Value;

use super::{Failure, Json};
use crate::stdout;

/// Prints `rows` as JSON, or as a table of `columns` whose cells `cells` gives.
pub(super) fn list<T: Serialize, const N: usize>(
    json: Json,
    rows: &[T],
    columns: [&str; N],
    cells: impl Fn(&T) -> [String; N],
) -> Result<(), Failure> {
    if json.json {
        return Ok(stdout::line(serde_json::to_string_pretty(rows)?)?);
    }
    let table: Vec<[String; N]> = rows.iter().map(cells).collect();
    let mut widths = columns.map(str::len);
    for row in &table {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        stdout::line(padded.join("  ").trim_end())
    };
    line(columns)?;
    for row in &table {
        line(std::array::from_fn(|column| row[column].as_str()))?;
    }
    Ok(())
}

/// Prints one object: JSON, or a line a field; the fields of an object within are named with its name before theirs.
pub(super) fn one<T: Serialize>(json: Json, object: &T) -> Result<(), Failure> {
    let value = serde_json::to_value(object)?;
    if json.json {
        return Ok(stdout::line(serde_json::to_string_pretty(&value)?)?);
    }
    let mut fields = Vec::new();
    flatten("", &value, &mut fields);
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, text) in fields {
        stdout::line(format!("{name:<width$}  {text}").trim_end())?;
    }
    Ok(())
}

fn flatten(name: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                let name = if name.is_empty() { member.clone() } else { format!("{name}.{member}") };
                flatten(&name, value, fields);
            }
        }
        Value::Null => fields.push((name.to_owned(), String::from("-"))),
        Value::String(text) => fields.push((name.to_owned(), text.clone())),
        value => fields.push((name.to_owned(), value.to_string())),
    }
}

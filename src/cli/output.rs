//! Tables for people, JSON for programs.

use serde::Serialize;

use super::{Failure, Json};

/// Prints `rows` as JSON, or as a table of `columns` whose cells `cells` gives.
pub(super) fn list<T: Serialize, const N: usize>(
    json: Json,
    rows: &[T],
    columns: [&str; N],
    cells: impl Fn(&T) -> [String; N],
) -> Result<(), Failure> {
    if json.json {
        println!("{}", serde_json::to_string_pretty(rows)?);
        return Ok(());
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
        println!("{}", padded.join("  ").trim_end());
    };
    line(columns);
    for row in &table {
        line(std::array::from_fn(|column| row[column].as_str()));
    }
    Ok(())
}

/// Prints one object: JSON, or a line a field.
pub(super) fn one<T: Serialize>(json: Json, object: &T) -> Result<(), Failure> {
    let value = serde_json::to_value(object)?;
    if json.json {
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let Some(fields) = value.as_object() else {
        println!("{value}");
        return Ok(());
    };
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in fields {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        println!("{name:<width$}  {text}");
    }
    Ok(())
}

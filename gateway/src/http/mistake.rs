//! What is wrong with a body, in words that its sender can act on: the member's name, and no names of our own types. Judges
//! nothing itself.

use serde_json::error::Category;

/// serde's words for types, and ours.
const TYPES: [(&str, &str); 3] = [
    ("expected u32", "expected a whole number up to 4294967295"),
    ("expected u64", "expected a whole number"),
    ("expected value", "expected another value"),
];

/// What `error` says of `bytes`, which could not be read.
pub(crate) fn worded(bytes: &[u8], error: &serde_json::Error) -> String {
    let said = TYPES.iter().fold(error.to_string(), |said, (theirs, ours)| said.replace(theirs, ours));
    // These name the member themselves.
    let names_it =
        ["unknown field", "missing field", "duplicate field"].iter().any(|how| said.starts_with(how));
    if error.classify() != Category::Data || names_it {
        return said;
    }
    match member_at(bytes, error.line(), error.column()) {
        Some(name) => format!("{name}: {said}"),
        None => said,
    }
}

/// The member of the outermost object that stands at a place which has been read without a fault.
fn member_at(bytes: &[u8], line: usize, column: usize) -> Option<&str> {
    let before: usize =
        bytes.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let read = bytes.get(..(before + column).min(bytes.len()))?;
    let (mut depth, mut at, mut text, mut member) = (0_usize, 0, None, None);
    while let Some(byte) = read.get(at) {
        match byte {
            b'"' => {
                let start = at + 1;
                at = start;
                while read.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if read[at] == b'\\' { 2 } else { 1 };
                }
                text = read.get(start..at);
            }
            b':' if depth == 1 => member = text,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    // Our members have short names; a stranger's is not repeated to him.
    member.and_then(|name| std::str::from_utf8(name).ok()).filter(|name| name.len() <= 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wish {
        #[serde(default)]
        _quantity: u32,
        #[serde(default)]
        _price: u64,
        #[serde(default)]
        _labels: BTreeMap<String, String>,
    }

    fn said(text: &str) -> String {
        let error = serde_json::from_str::<Wish>(text).expect_err("a mistake");
        worded(text.as_bytes(), &error)
    }

    #[test]
    fn a_mistake_names_its_member_and_no_type_of_ours() {
        for (text, begins) in [
            (
                r#"{"_quantity":-1}"#,
                "_quantity: invalid value: integer `-1`, expected a whole number up to 4294967295 at line 1",
            ),
            (
                r#"{"_quantity":4294967296}"#,
                "_quantity: invalid value: integer `4294967296`, expected a whole number up to",
            ),
            (
                "{\"_quantity\":1,\n \"_price\" : \"1\"}",
                "_price: invalid type: string \"1\", expected a whole number at line 2",
            ),
            (r#"{"_price":null,"_quantity":1}"#, "_price: invalid type: null, expected a whole number at"),
            (
                r#"{"_labels":{"a:\"b":"x","c":{}},"_price":1}"#,
                "_labels: invalid type: map, expected a string",
            ),
            (r#"{"_price":1,"_labels":[]}"#, "_labels: invalid type: sequence, expected a map"),
            (r#"{"_price":1,"other":2}"#, "unknown field `other`, expected one of"),
            (r#"{"_price":1,"_price":2}"#, "duplicate field `_price` at line 1"),
            (r#"{"_price":1,}"#, "trailing comma at line 1"),
            ("{", "EOF while parsing an object"),
        ] {
            assert!(said(text).starts_with(begins), "{text}: {}", said(text));
        }
    }

    #[test]
    fn a_place_beyond_the_bytes_is_no_fault() {
        for (line, column) in [(0, 0), (1, 0), (9, 9), (usize::MAX, 1)] {
            assert!(member_at(b"{\"a\\", line, column).is_none());
        }
        assert_eq!(member_at("{\"é\":1}".as_bytes(), 1, 6), Some("é"));
    }
}

//! What to do about a published sale and a configuration that say different things of it: the exact command, or the exact lines. It
//! changes nothing.

use std::fmt::Write;

use serde_json::Value;
use stock::{SaleDefinition, SaleEdit};

/// How the published sale becomes as it is configured, or why it cannot.
pub(crate) fn way_out(published: &SaleDefinition, configured: &SaleDefinition) -> String {
    let edit = SaleEdit::between(published, configured);
    let id = &published.id;
    if edit.of(published) == *configured {
        return format!(
            "to change the published sale: {}\n(it works while floodgate does not run, too); to keep it, put the published values back",
            command(published, &edit)
        );
    }
    format!(
        "put the published values back, or give the changed sale a new id: `floodgate sales edit {id}` changes most keys, not these; \
         `floodgate sales restock {id}` adds units"
    )
}

/// The command that makes this edit.
fn command(sale: &SaleDefinition, edit: &SaleEdit) -> String {
    let mut command = format!("floodgate sales edit {}", sale.id);
    let Ok(Value::Object(keys)) = serde_json::to_value(edit) else { return command };
    // Writing into a String does not fail.
    for (key, value) in keys {
        match value {
            Value::Object(labels) => {
                if labels.is_empty() {
                    command.push_str(" --no-labels");
                }
                for (name, label) in labels {
                    let label = label.as_str().unwrap_or_default();
                    let _ = write!(command, " --label {}", quoted(&format!("{name}={label}")));
                }
            }
            value => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _ = write!(command, " --{} {}", key.replace('_', "-"), quoted(&text));
            }
        }
    }
    command
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:=+/".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What a configuration file must say of a sale after an edit, as TOML; `None` where it does so already, or lists no such sale.
pub(crate) fn lines_for_file(configured: &[SaleDefinition], sale: &SaleDefinition) -> Option<String> {
    let listed = configured.iter().find(|listed| listed.id == sale.id)?;
    let missing = SaleEdit::between(listed, sale);
    if missing == SaleEdit::default() {
        return None;
    }
    let Ok(Value::Object(keys)) = serde_json::to_value(&missing) else { return None };
    let line = |(key, value): (String, Value)| match value {
        Value::Object(labels) => {
            let labels: Vec<String> =
                labels.into_iter().map(|(name, label)| format!("{name:?} = {label}")).collect();
            format!("{key} = {{ {} }}", labels.join(", "))
        }
        value => format!("{key} = {value}"),
    };
    Some(keys.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sale() -> SaleDefinition {
        serde_json::from_str(
            r#"{"id":"s","price":100,"total":5,"starts_at":"2026-01-01T00:00:00Z","ends_at":"2026-01-02T00:00:00Z"}"#,
        )
        .expect("a sale")
    }

    #[test]
    fn the_command_leads_from_one_to_the_other() {
        let mut configured = sale();
        (configured.title, configured.price) = ("it's 红".into(), 200);
        let words = way_out(&sale(), &configured);
        assert!(words.contains("floodgate sales edit s --price 200 --title 'it'\\''s 红'\n"), "{words}");
        configured.total = 6;
        assert!(way_out(&sale(), &configured).contains("sales restock s"));
    }

    #[test]
    fn the_lines_are_those_that_the_file_lacks() {
        let mut edited = sale();
        edited.title = "\"a\"".into();
        edited.labels.insert("k".into(), "v".into());
        let lines = lines_for_file(&[sale()], &edited).expect("lines");
        assert_eq!(lines, "labels = { \"k\" = \"v\" }\ntitle = \"\\\"a\\\"\"");
        assert_eq!(lines_for_file(&[edited.clone()], &edited), None);
        assert_eq!(lines_for_file(&[], &edited), None);
    }
}

//! Says in one sentence what is wrong with a configuration, naming the key: serde knows the section at best.

use serde::Deserialize;
use stock::SaleDefinition;
use toml::{Table, Value};

use super::{Config, ConfigError};

/// Sections that the interface has and this version does not.
const LATER: &[(&str, &str)] = &[("subscriber", "it sends no events yet")];

/// Two names closer than this are taken for a typing error (Jaro-Winkler, 0 to 1).
const LIKENESS_MIN: f64 = 0.75;

/// The whole configuration, or the first key at fault.
pub(super) fn deserialize(table: &Table) -> Result<Config, ConfigError> {
    for (name, section) in table {
        if let Err(message) = alone(name, section.clone()) {
            return Err(ConfigError(at_fault(name, section, &message)));
        }
    }
    Config::deserialize(Value::Table(table.clone())).map_err(|e| ConfigError(e.message().to_owned()))
}

/// Whether one section, with nothing else around it, can be read; serde's words if not.
fn alone(name: &str, section: Value) -> Result<(), String> {
    let table = Table::from_iter([(name.to_owned(), section)]);
    Config::deserialize(Value::Table(table)).map(drop).map_err(|e| e.message().trim_end().to_owned())
}

/// Whether `key = value` can stand in `[section]`.
pub(super) fn fits(section: &str, key: &str, value: &Value) -> bool {
    alone(section, Value::Table(Table::from_iter([(key.to_owned(), value.clone())]))).is_ok()
}

/// A file that is no TOML: where, and what the parser says.
pub(super) fn syntax(path: &std::path::Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    ConfigError(format!(
        "{}, line {line}: {} (texts stand in quotes, and a section or key at most once)",
        path.display(),
        error.message().trim_end()
    ))
}

fn at_fault(name: &str, section: &Value, message: &str) -> String {
    if let Some((_, why)) = LATER.iter().find(|(later, _)| *later == name) {
        return format!("[{name}] belongs to a later version, {why}: remove the section");
    }
    match section {
        Value::Table(keys) if name != "sale" => {
            for (key, value) in keys {
                if let Err(message) = alone(name, single(key, value.clone())) {
                    return inner_at_fault(name, key, value)
                        .unwrap_or_else(|| explain(name, Some(key), &message));
                }
            }
            explain(name, None, message)
        }
        Value::Array(sales) if name == "sale" => sales
            .iter()
            .enumerate()
            .find_map(|(at, sale)| sale_at_fault(at, sale))
            .unwrap_or_else(|| explain(name, None, message)),
        _ if name == "sale" => {
            "sales are a list: write [[sale]], with double brackets, before each".to_owned()
        }
        _ if known_sections().contains_key(name) => {
            format!("{name} is a section: write its keys below [{name}]")
        }
        Value::Table(_) | Value::Array(_) => explain(name, None, message),
        _ => stray_key(name).unwrap_or_else(|| explain(name, None, message)),
    }
}

fn single(key: &str, value: Value) -> Value {
    Value::Table(Table::from_iter([(key.to_owned(), value)]))
}

/// The key at fault of a section within a section.
fn inner_at_fault(section: &str, inner: &str, value: &Value) -> Option<String> {
    known_sections().get(section)?.get(inner)?.as_table()?;
    value.as_table()?.iter().find_map(|(key, value)| {
        let message = alone(section, single(inner, single(key, value.clone()))).err()?;
        Some(explain(&format!("{section}.{inner}"), Some(key), &message))
    })
}

/// A known key that stands before the first section.
fn stray_key(key: &str) -> Option<String> {
    let sections: Vec<_> = known_sections()
        .iter()
        .filter(|(_, section)| section.as_table().is_some_and(|keys| keys.contains_key(key)))
        .map(|(name, _)| format!("[{name}]"))
        .collect();
    (!sections.is_empty())
        .then(|| format!("{key} stands in no section: write it below {}", sections.join(" or ")))
}

/// All sections with those of their keys that have a default.
pub(super) fn known_sections() -> Table {
    Table::try_from(Config::default()).unwrap_or_default()
}

fn sale_at_fault(at: usize, sale: &Value) -> Option<String> {
    let message = SaleDefinition::deserialize(sale.clone()).err()?;
    let sale = sale.as_table()?;
    let name = match sale.get("id").and_then(Value::as_str) {
        Some(id) => format!("[sale]] {id:?}"),
        None => format!("[sale]] number {}", at + 1),
    };
    for (key, value) in sale {
        let mut good = Table::from_iter([
            ("id".to_owned(), "a".into()),
            ("price".to_owned(), 1.into()),
            ("total".to_owned(), 1.into()),
            ("starts_at".to_owned(), "2030-01-01T00:00:00Z".into()),
            ("ends_at".to_owned(), "2030-01-02T00:00:00Z".into()),
        ]);
        good.insert(key.clone(), value.clone());
        if let Err(error) = SaleDefinition::deserialize(Value::Table(good)) {
            return Some(format!("[{}", explain_in(&name, Some(key), error.message())));
        }
    }
    Some(format!("[{}", explain_in(&name, None, message.message())))
}

/// Turns serde's words into ours.
fn explain(section: &str, key: Option<&str>, message: &str) -> String {
    if let Some(unknown) = unknown_field(message)
        && unknown == section
    {
        return unknown_name("section", message);
    }
    match key {
        Some(key) if unknown_field(message) == Some(key) => {
            unknown_name(&format!("key in [{section}]"), message)
        }
        Some(key) => explain_value(&format!("{section}.{key}"), key, message),
        None => explain_value(&format!("[{section}]"), "", message),
    }
}

fn explain_in(sale: &str, key: Option<&str>, message: &str) -> String {
    match key {
        Some(key) if unknown_field(message) == Some(key) => {
            format!("{sale}: {}", unknown_name("key", message))
        }
        Some(key) => explain_value(&format!("{sale}: {key}"), key, message),
        None => explain_value(sale, "", message),
    }
}

fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// An unknown key gets the nearest known one.
fn unknown_name(place: &str, message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    let likeness = |name: &str| strsim::jaro_winkler(unknown, name);
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest {
        Some(nearest) if likeness(nearest) >= LIKENESS_MIN => {
            format!(
                "unknown {place}: {unknown:?}; the nearest known one is {nearest:?} (all: {})",
                known.join(", ")
            )
        }
        Some(nearest) => {
            format!("unknown {place}: {unknown:?}; known are {} (nearest: {nearest:?})", known.join(", "))
        }
        None => format!("unknown {place}: {unknown:?}"),
    }
}

fn explain_value(place: &str, key: &str, message: &str) -> String {
    let message = message.trim_end();
    if unknown_field(message).is_some() {
        return format!(
            "{place} has an {}",
            unknown_name("unknown key", message).replacen("unknown ", "", 1)
        );
    }
    if let Some(field) = message.strip_prefix("missing field `") {
        return format!("{place}: {} is missing", field.trim_end_matches('`'));
    }
    // A secret of the wrong type must not be shown.
    let secret = ["secret", "token", "database_url", "api_v3_key"].iter().any(|word| key.contains(word));
    if secret && !key.ends_with("_file") && message.contains("expected a string") {
        return format!("{place} must be a text, in quotes");
    }
    let message = message.replace("unknown variant", "unknown value");
    // What serde makes of a choice that is no text.
    if message.contains("unit variant") || message.starts_with("wanted exactly 1 element") {
        return format!("{place} must be a text, in quotes");
    }
    let message = match message.rsplit_once("expected ") {
        Some((found, "u32")) => format!("{found}expected a whole number from 0 to {}", u32::MAX),
        Some((found, "u8")) => format!("{found}expected a whole number from 0 to {}", u8::MAX),
        Some((found, "u64" | "usize")) => format!("{found}expected a whole number, 0 or more"),
        Some((found, "struct PassSecret")) => format!("{found}expected {{ id = \"…\", secret = \"…\" }}"),
        Some((found, "struct WechatPublicKey")) => {
            format!("{found}expected {{ id = \"PUB_KEY_ID_…\", file = \"FILE\" }}")
        }
        Some((found, "a string" | "path string")) => format!("{found}expected a text, in quotes"),
        Some((found, "a boolean")) => format!("{found}expected true or false"),
        Some((found, "a sequence")) => format!("{found}expected a list, in brackets"),
        _ => message,
    };
    if message.contains("socket address") {
        return format!(
            "{place} must be an IP address and a port, such as \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"[::1]:8080\""
        );
    }
    format!("{place}: {message}")
}

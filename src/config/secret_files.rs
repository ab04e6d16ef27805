//! Secrets that are given as `…_file`: read in, and printed as the file's name again. Never lets a hidden one count as a secret.

use std::path::PathBuf;

use toml::{Table, Value};

use super::ConfigError;

/// Where a secret may stand, as (section, key); each may be given as `<key>_file` instead.
/// `admin.token` is not among them: its file is made at the first start of a server, not required of every command.
const SECRETS: &[(&str, &str)] = &[
    ("admin", "journal_secret"),
    ("auth", "hs256_secret"),
    ("auth", "hs256_secret_base64"),
    ("gate.pass_secrets", "secret"),
    ("orders", "database_url"),
    ("stock", "redis_urls"),
    ("sold_out", "zookeeper"),
    ("payment", "callback_secret"),
    ("payment", "callback_secrets"),
    ("payment.wechat_pay", "api_v3_key"),
    // No secret, and handed out as a file.
    ("payment.alipay", "public_key"),
];

/// The secrets that are lists: their files have one a line.
const LISTS: &[&str] = &["redis_urls", "callback_secrets"];

/// What `--print-config` shows instead of a secret, and of a password in an address.
const HIDDEN: [&str; 3] = ["***", ":***@", "=***"];

/// A secret that stood in a file.
#[derive(Debug)]
pub(super) struct SecretFile {
    section: &'static str,
    /// Its place in a section that is a list.
    place: usize,
    key: &'static str,
    path: Value,
}

/// The tables that `section` has: one, or within a section one, or one an entry of a list.
fn tables<'t>(table: &'t mut Table, section: &str) -> Vec<&'t mut Table> {
    match section.split_once('.') {
        None => table.get_mut(section).and_then(Value::as_table_mut).into_iter().collect(),
        Some((outer, inner)) => match table.get_mut(outer).and_then(|outer| outer.get_mut(inner)) {
            Some(Value::Table(section)) => vec![section],
            Some(Value::Array(list)) => list.iter_mut().filter_map(Value::as_table_mut).collect(),
            _ => Vec::new(),
        },
    }
}

/// Replaces each `<secret>_file` by what stands in that file.
pub(super) fn read(table: &mut Table) -> Result<Vec<SecretFile>, ConfigError> {
    let mut files = Vec::new();
    for (section, key) in SECRETS {
        for (place, entry) in tables(table, section).into_iter().enumerate() {
            if let Some(path) = read_one(entry, section, key)? {
                files.push(SecretFile { section, place, key, path });
            }
        }
    }
    Ok(files)
}

fn read_one(table: &mut Table, section: &str, key: &str) -> Result<Option<Value>, ConfigError> {
    let file_key = format!("{key}_file");
    let Some(given) = table.remove(&file_key) else { return Ok(None) };
    let wrong = |problem: String| ConfigError(format!("[{section}] {file_key}{problem}"));
    let Some(path) = given.as_str().filter(|path| !path.is_empty()).map(PathBuf::from) else {
        return Err(wrong(" must be the name of a file, in quotes".into()));
    };
    if table.contains_key(key) {
        return Err(ConfigError(format!("[{section}] has both {key} and {file_key}: keep one")));
    }
    let secret = std::fs::read_to_string(&path)
        .map_err(|e| wrong(format!(": cannot read {}: {e}", path.display())))?;
    if secret.trim().is_empty() {
        return Err(wrong(format!(": {} is empty: write the secret into it", path.display())));
    }
    let text = |text: &str| Value::String(text.to_owned());
    let value = if LISTS.contains(&key) {
        Value::Array(secret.lines().map(str::trim).filter(|line| !line.is_empty()).map(text).collect())
    } else {
        text(secret.trim_end_matches(['\r', '\n']))
    };
    table.insert(key.to_owned(), value);
    Ok(Some(given))
}

/// In a printed configuration: the file's name where the secret came from one.
pub(super) fn put_back(files: &[SecretFile], table: &mut Table) {
    for SecretFile { section, place, key, path } in files {
        if let Some(entry) = tables(table, section).into_iter().nth(*place) {
            entry.remove(*key);
            entry.insert(format!("{key}_file"), path.clone());
        }
    }
}

/// A printed configuration that is used again has no secrets: those asterisks must not become one, nor be passed over.
pub(super) fn refuse_hidden(table: &Table) -> Result<(), ConfigError> {
    let mut table = table.clone();
    for (section, key) in SECRETS.iter().chain(&[("admin", "token")]) {
        for entry in tables(&mut table, section) {
            let given = match entry.get(*key) {
                Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
                Some(Value::String(text)) => vec![text.as_str()],
                _ => Vec::new(),
            };
            let [whole, login, query] = HIDDEN;
            if given.iter().any(|text| *text == whole || text.contains(login) || text.contains(query)) {
                return Err(ConfigError(format!(
                    "[{section}] {key} is hidden, as --print-config shows it: write the real one instead of ***, or use {key}_file"
                )));
            }
        }
    }
    Ok(())
}

//! How this code reads, where a machine can tell: file lengths, headings, names, one-way dependencies, patches that apply.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINES_MAX: usize = 500;
const CRATES: [&str; 5] = ["queue", "stock", "order-worker", "gateway", "loadtest"];
const NAMES_THAT_SAY_NOTHING: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "misc", "manager"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                files_below(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in CRATES.iter().chain(&["src", "tests", "benches", "testbed"]) {
        files_below(&root().join(folder), "rs", &mut found);
    }
    assert!(found.len() > 20, "the walk found only {} files", found.len());
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8"))).collect()
}

fn complain(rule: &str, bad: &[String]) {
    assert!(bad.is_empty(), "{rule}:\n  {}", bad.join("\n  "));
}

#[test]
fn every_file_opens_with_what_it_owns() {
    let bad: Vec<_> = sources()
        .iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    complain("the first line must be `//! …`", &bad);
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let bad: Vec<_> = sources()
        .iter()
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    complain(&format!("at most {LINES_MAX} lines a file"), &bad);
}

#[test]
fn names_say_something() {
    let bad: Vec<_> = sources()
        .iter()
        .filter(|(path, _)| {
            path.components().any(|part| {
                let name = part.as_os_str().to_string_lossy();
                NAMES_THAT_SAY_NOTHING.contains(&name.trim_end_matches(".rs"))
            })
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    complain("a name must say what is inside", &bad);
}

#[test]
fn nothing_is_left_for_later() {
    let markers =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let mut bad = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if markers.iter().any(|marker| line.contains(marker)) {
                bad.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    complain("finish it or leave it out", &bad);
}

#[test]
fn unsafe_is_forbidden_but_in_the_queue() {
    let bad: Vec<_> = [
        "src/main.rs",
        "stock/src/lib.rs",
        "order-worker/src/lib.rs",
        "gateway/src/lib.rs",
        "loadtest/src/main.rs",
        "testbed/src/lib.rs",
    ]
    .into_iter()
    .filter(|file| !fs::read_to_string(root().join(file)).expect("there").contains("#![forbid(unsafe_code)]"))
    .map(str::to_owned)
    .collect();
    complain("#![forbid(unsafe_code)] is missing", &bad);
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("queue", &[][..]),
        ("stock", &[][..]),
        ("order-worker", &["queue", "stock"][..]),
        ("gateway", &["queue", "stock"][..]),
        ("loadtest", &[][..]),
    ]);
    let mut bad = Vec::new();
    for (name, allowed) in allowed {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = manifest.parse().expect("TOML");
        for section in ["dependencies", "dev-dependencies"] {
            let listed = manifest.get(section).and_then(toml::Value::as_table);
            for dependency in listed.into_iter().flat_map(toml::Table::keys) {
                if CRATES.contains(&dependency.as_str())
                    && !allowed.contains(&dependency.as_str())
                    && dependency != name
                {
                    bad.push(format!("{name} depends on {dependency}"));
                }
            }
        }
    }
    complain("root → {gateway, order-worker} → {stock, queue}", &bad);
}

/// A patch that no longer applies proves nothing; that it is still caught, `testbed/planted` says.
#[test]
fn planted_bugs_apply() {
    let mut patches = Vec::new();
    for folder in ["queue/planted", "testbed/planted.d"] {
        files_below(&root().join(folder), "patch", &mut patches);
    }
    assert!(patches.len() > 20, "the walk found only {} patches", patches.len());
    let bad: Vec<_> = patches
        .iter()
        .filter_map(|patch| {
            let mut git = Command::new("git");
            let output = git
                .arg("-C")
                .arg(root())
                .args(["apply", "--recount", "--check"])
                .arg(patch)
                .output()
                .expect("git");
            (!output.status.success()).then(|| {
                format!("{}: {}", patch.display(), String::from_utf8_lossy(&output.stderr).trim_end())
            })
        })
        .collect();
    complain("a planted bug does not apply to this code: write its patch again", &bad);
}

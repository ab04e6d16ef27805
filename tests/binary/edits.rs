//! A published sale is corrected: by the command that a start names, and while it runs.

use crate::sale;
use crate::server::Site;

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The command in a text, as a shell would run it.
fn run_quoted(site: &Site, text: &str) -> String {
    let line = text.lines().find_map(|line| line.split_once("floodgate sales edit ")).expect("a command").1;
    let shell = format!("exec \"$0\" --config floodgate.toml sales edit {line}");
    let mut command = std::process::Command::new("sh");
    command.current_dir(site.path()).args(["-c", &shell, env!("CARGO_BIN_EXE_floodgate")]);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{line}: {}", said(&output));
    said(&output)
}

#[test]
fn a_file_that_says_something_else_names_the_command_that_makes_it_so() {
    let first = sale("s", 3, 1_800);
    let site = Site::new(&first);
    drop(site.start());
    // A title and a price are mended in the file, though nothing is sold.
    let mended =
        first.replace("title = \"s\"", "title = \"it's a lamp\"").replace("price = 100", "price = 120");
    site.configure(&mended);
    let refused = site.run(&[]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let answer = run_quoted(&site, &said(&refused));
    assert!(answer.contains("pending") && !answer.contains("the next start stops"), "{answer}");
    let server = site.start();
    let shown = site.call("GET", "/api/v1/sales/s", &[], "").json();
    assert_eq!(
        (&shown["title"], &shown["price"], &shown["version"]),
        (&"it's a lamp".into(), &120.into(), &2.into())
    );

    // While it runs: in force at once, and the file is to follow.
    let edited = site.run(&["sales", "edit", "s", "--price", "90", "--reason", "a friendly one"]);
    assert_eq!(edited.status.code(), Some(0), "{}", said(&edited));
    assert!(said(&edited).contains("in-force"), "{}", said(&edited));
    assert!(
        said(&edited).contains("the next start stops unless [[sale]] s")
            && said(&edited).contains("price = 90")
    );
    drop(server);
    assert_eq!(site.run(&[]).status.code(), Some(2));
    site.configure(&mended.replace("price = 120", "price = 90"));
    let _server = site.start();
    let journal = rusqlite::Connection::open(site.database()).expect("there");
    let rows = |sql: &str| journal.query_row(sql, [], |row| row.get::<_, i64>(0)).expect(sql);
    let written = "SELECT count(*) FROM floodgate_journal WHERE action = 'sale edit' AND subject = 's'";
    assert_eq!(rows(written), 2);
    let told =
        "reason = 'a friendly one' AND \"before\" LIKE '%\"price\":120%' AND \"after\" LIKE '%\"price\":90%'";
    assert_eq!(rows(&format!("{written} AND operator = 'admin' AND {told}")), 1);
}

#[test]
fn an_edit_that_cannot_be_made_says_why_and_changes_nothing() {
    let site = Site::new(&sale("s", 3, 5));
    let _server = site.start();
    let before = site.call("GET", "/api/v1/sales/s", &[], "").json();
    let fails = |arguments: &[&str], exit: i32, word: &str| {
        let output = site.run(&[&["sales", "edit"], arguments].concat());
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{arguments:?}: {word} is not in {}", said(&output));
    };
    fails(&["s"], 2, "--title");
    fails(&["s", "--price", "x"], 2, "--price");
    fails(&["s", "--label", "x"], 2, "NAME=VALUE");
    fails(&["nobody", "--price", "1"], 1, "no such sale");
    fails(&["s", "--currency", "yen"], 1, "currency");
    let later = ["s", "--starts-at", "2099-01-01T00:00:00Z", "--ends-at", "2099-01-02T00:00:00Z"];
    fails(&later, 1, "10 s before the start");
    fails(&["s", "--pay-within-s", "0"], 1, "pay_within_s");
    assert_eq!(site.call("GET", "/api/v1/sales/s", &[], "").json(), before);
}

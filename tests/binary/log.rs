//! What becomes of a process whose log cannot be written. Nothing: it sells, and it ends in order.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::sale;
use crate::server::{Answer, Server, Site};

fn full_disk() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").expect("Linux has it"))
}

fn start(site: &Site, stderr: Stdio, environment: &[(&str, &str)]) -> Server {
    let mut command = site.command(&[]);
    command.envs(environment.iter().copied());
    site.start_logging_to(command, stderr)
}

/// One purchase to its row, and then the end that the signal asks for.
fn sells_and_ends_well(site: &Site, server: Server, signal: &str) {
    let (token, pass, order) = site.pass("s", "ann");
    assert_eq!(site.press("s", &pass, "{}").status, 202);
    let bearer = format!("Bearer {token}");
    let ask = || site.call("GET", &format!("/api/v1/orders/{order}"), &[("authorization", &bearer)], "");
    site.wait_for("row", ask, |answer| answer.status == 200 && answer.json()["status"] == "unpaid");
    server.signal(signal);
    let status = server.wait();
    assert!(status.success(), "after {signal}: {status}");
}

fn lost_lines(metrics: &Answer) -> u64 {
    let line = metrics.body.lines().find(|line| line.starts_with("floodgate_log_lines_lost_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn ready(site: &Site) -> Answer {
    site.admin_call("GET", "/readyz", "")
}

#[test]
fn a_log_on_a_full_disk_costs_lines_and_nothing_else() {
    let site = Site::new(&sale("s", 2, -1));
    let server = start(&site, full_disk(), &[]);
    let metrics = || site.admin_call("GET", "/metrics", "");
    site.wait_for("count of lost lines", metrics, |answer| lost_lines(answer) > 0);
    let notes = ready(&site).json()["notes"].to_string();
    assert!(notes.contains("lines of the log are lost"), "{notes}");
    sells_and_ends_well(&site, server, "-TERM");
}

#[test]
fn a_reader_of_the_log_that_has_gone_is_no_reason_to_fall() {
    let site = Site::new(&sale("s", 2, -1));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    // As Ctrl-C ends `floodgate 2>&1 | tee log`: the reader goes, and the shutdown has something to say.
    let server = start(&site, writer.into(), &[]);
    sells_and_ends_well(&site, server, "-INT");
}

#[test]
fn a_reader_of_the_log_that_hangs_holds_up_nobody() {
    let site = Site::new(&sale("s", 2, -1));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // It is filled to the brim before the process says its first word.
    let mut filler = writer.try_clone().expect("a second end");
    let filled = std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut filler, &[b'\n'; 1 << 20]);
    });
    let server = start(&site, writer.into(), &[]);
    sells_and_ends_well(&site, server, "-TERM");
    drop(reader);
    filled.join().expect("it ends with its reader");
}

#[test]
fn a_log_for_collectors_is_json_line_by_line() {
    let site = Site::new(&sale("s", 2, -1));
    let server = start(
        &site,
        File::create(site.path().join("json")).expect("writable").into(),
        &[("FLOODGATE_LOG_FORMAT", "json")],
    );
    sells_and_ends_well(&site, server, "-TERM");
    let mut text = String::new();
    File::open(site.path().join("json")).expect("there").read_to_string(&mut text).expect("UTF-8");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
        .collect();
    assert!(lines.iter().any(|line| line["message"] == "SIGTERM: shutting down"), "{text}");
    assert!(lines.iter().all(|line| line["level"].is_string() && line["timestamp"].is_string()), "{text}");
}

#[test]
fn a_command_that_cannot_say_why_still_exits_as_it_should() {
    let site = Site::new("");
    let run = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full_disk()).status().expect("runs").code()
    };
    assert_eq!(run(&mut site.command(&["sales", "show", "no"])), Some(1));
    assert_eq!(run(site.command(&[]).env("FLOODGATE_GATEWAY__LISTEN", "nowhere")), Some(2));
    assert_eq!(run(site.command(&[]).env("FLOODGATE_LOG_FORMAT", "xml")), Some(2));
    // A start that fails after the log has begun.
    let _server = site.start();
    assert_eq!(run(&mut site.command(&[])), Some(1));
}

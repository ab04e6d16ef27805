//! Whatever ends a process, its servers and their directories end with it: a drop, a panic, a return with servers in a static,
//! kill -9. The process in question is this test binary once more.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use testbed::{MariaDb, Nginx, Redis, RedisOptions, ZooKeeper};

const ROLE: &str = "FLOODGATE_TESTBED_ROLE";

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Processes that run in `root` or have it on their command line: each server does one or the other, whatever it calls itself.
fn processes_below(root: &Path) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let runs_there = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|at| at.starts_with(root));
        if runs_there || String::from_utf8_lossy(&line).contains(&*root.to_string_lossy()) {
            found.insert(pid);
        }
    }
    found
}

/// This test binary again, running only `the_other_process` in that role; and the temporary directory that is its own.
struct Other {
    child: Child,
    home: PathBuf,
}

impl Other {
    fn start(role: &str) -> Self {
        let home = testbed::Directory::new("home").unwrap();
        let path = home.path().to_owned();
        // Kept: what the other process leaves there is what is looked at. This process's watchdog removes it.
        std::mem::forget(home);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "the_other_process", "--nocapture"])
            .env(ROLE, role)
            .env("TMPDIR", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, home: path }
    }

    /// Its servers run.
    fn wait_until_ready(&mut self) {
        let output = self.child.stdout.take().unwrap();
        let mut lines = BufReader::new(output).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready")), "it ended too early");
        // Kept open, or its next word would end it.
        thread::spawn(move || lines.for_each(drop));
    }

    fn runs_servers(&self) {
        let found = processes_below(&self.home).len();
        assert!(found >= 8, "five servers, two workers and the watchdog, but {found}");
    }

    fn leaves_nothing(&mut self) {
        self.child.wait().unwrap();
        until("no process is left", || processes_below(&self.home).is_empty());
        until("no directory is left", || std::fs::read_dir(&self.home).unwrap().next().is_none());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "started by the other tests, with a role"]
fn the_other_process() {
    static SHARED: OnceLock<Redis> = OnceLock::new();
    let role = std::env::var(ROLE).expect("a role");
    let _nginx = Nginx::start(|port| format!("server {{ listen 127.0.0.1:{port}; }}")).unwrap();
    let _redis = Redis::start(RedisOptions::default()).unwrap();
    let frozen = Redis::start(RedisOptions::default()).unwrap();
    frozen.freeze().unwrap();
    match role.as_str() {
        "waits" => {
            let _maria = MariaDb::start().unwrap();
            let _keeper = ZooKeeper::start().unwrap();
            println!("ready");
            thread::sleep(Duration::from_secs(3_600));
        }
        "panics" => {
            println!("ready");
            panic!("as planned");
        }
        "returns" => {
            SHARED.set(Redis::start(RedisOptions::default()).unwrap()).unwrap();
            println!("ready");
        }
        other => panic!("unknown role {other}"),
    }
}

#[test]
fn a_drop_leaves_nothing() {
    let redis = Redis::start(RedisOptions::default()).unwrap();
    let pid = redis.pid();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    drop(redis);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_panic_leaves_nothing() {
    let mut other = Other::start("panics");
    other.wait_until_ready();
    other.leaves_nothing();
}

#[test]
fn a_server_in_a_static_ends_with_the_process() {
    let mut other = Other::start("returns");
    other.wait_until_ready();
    other.leaves_nothing();
}

#[test]
fn a_process_killed_with_9_leaves_nothing() {
    let mut other = Other::start("waits");
    other.wait_until_ready();
    other.runs_servers();
    other.child.kill().unwrap();
    other.leaves_nothing();
}

#[test]
fn a_process_that_is_told_to_end_leaves_nothing() {
    let mut other = Other::start("waits");
    other.wait_until_ready();
    other.runs_servers();
    assert!(Command::new("kill").arg(other.child.id().to_string()).status().unwrap().success());
    other.leaves_nothing();
}

//! A log whose last acknowledged page the disk has lost: everything that looks at it says so, and the way out works.

use std::path::PathBuf;

use crate::server::Site;
use crate::{fails_with, sale};

const PAGE: usize = 4096;
const ORDERS: &str = "floodgate-orders";

/// Zeroes the page at which a topic's last batch begins.
fn lose_the_last_page(site: &Site, topic: &str) {
    let log = site.path().join("data/queue").join(topic).join("log");
    let segments = std::fs::read_dir(&log).expect("the topic is there");
    let mut segments: Vec<PathBuf> = segments.map(|entry| entry.expect("readable").path()).collect();
    segments.sort();
    for segment in segments.iter().rev() {
        let mut bytes = std::fs::read(segment).expect("readable");
        let begins = |at: &usize| bytes[*at..].starts_with(b"FLGBATCH");
        if let Some(last) = (0..bytes.len()).step_by(PAGE).rfind(begins) {
            bytes[last..last + PAGE].fill(0);
            std::fs::write(segment, bytes).expect("writable");
            return;
        }
    }
    panic!("no batch in {}", log.display());
}

#[test]
fn a_damaged_log_is_called_so_by_all_who_look_and_can_be_left_out() {
    // So slowly drained that no group has seen the last order, and could miss it.
    let site = Site::new(&format!("[drain]\norders_per_second_max = 1\n{}", sale("s", 20, -1)));
    let server = site.start();
    let buy = |user: &str| {
        let (_, pass, _) = site.pass("s", user);
        assert_eq!(site.press("s", &pass, "{}").status, 202);
    };
    for number in 0..8 {
        buy(&format!("ann-{number}"));
    }
    server.signal("-KILL");
    server.wait();
    lose_the_last_page(&site, ORDERS);

    let words = ["data/queue", "keep a copy", "At risk", "ledger instances", "ledger rebuild --without"];
    fails_with(&site, &["queue", "verify"], 1, &words);
    fails_with(&site, &[], 1, &words);
    fails_with(&site, &["queue", "dump", ORDERS], 1, &words);

    std::fs::rename(site.path().join("data/queue"), site.path().join("data/damaged")).expect("moved");
    fails_with(&site, &[], 1, &["data/queue", "ledger rebuild --without"]);
    let instances = site.run(&["ledger", "instances", "--json"]).stdout;
    let instances: serde_json::Value = serde_json::from_slice(&instances).expect("JSON");
    let awaited = instances.as_array().expect("a list").iter().find(|one| one["awaited"] == true);
    let id = awaited.expect("the damaged one")["instance"].as_str().expect("an id");
    let left_out = site.run(&["ledger", "rebuild", "--without", id]);
    assert!(left_out.status.success(), "{}", String::from_utf8_lossy(&left_out.stderr));
    let _server = site.start();
    buy("bob");
}

//! Whole spikes against the fake target: a sound one is good, and each planted fault is found by the field that names it.

use clap::Parser;
use serde_json::Value;

use super::*;
use crate::arguments::{Arguments, Scenario};
use crate::fake::{Fake, Fault};

const USERS: u32 = 200;
const UNITS: u32 = 40;

fn options(fake: &Fake, arrival: &str) -> SpikeOptions {
    let line = format!(
        "loadtest spike --users {USERS} --units {UNITS} --arrival {arrival} --spread-ms 300 --seed 7 --bots 2 --connections 32 \
         --target {url} --admin-url {url} --admin-token-file {token} --jwt-secret-file {secret} --database-url sqlite://{database} \
         --json {json} --html {html}",
        url = fake.url(),
        token = fake.file("token").display(),
        secret = fake.file("secret").display(),
        database = fake.file("orders.db").display(),
        json = fake.file("report.json").display(),
        html = fake.file("report.html").display(),
    );
    match Arguments::parse_from(line.split_whitespace()).scenario {
        Scenario::Spike(options) => options,
        other => panic!("{other:?}"),
    }
}

async fn spike(fault: Fault) -> (bool, Value) {
    let fake = Fake::start(fault).await;
    let good = run(&options(&fake, "presale")).await.expect("played");
    let report = std::fs::read_to_string(fake.file("report.json")).expect("a report");
    (good, serde_json::from_str(&report).expect("json"))
}

async fn must_find(fault: Fault, field: &str) -> Value {
    let (good, report) = spike(fault).await;
    assert!(!good, "{fault:?} passed: {report:#}");
    assert_eq!(report["verdict"], "broken");
    assert!(report["audit"][field].as_u64().expect("a count") > 0, "{field}: {report:#}");
    report
}

#[tokio::test]
async fn a_sound_target_is_found_good_and_everybody_is_counted() {
    let (good, report) = spike(Fault::Nothing).await;
    assert!(good, "{report:#}");
    assert_eq!((&report["accepted"], &report["audit"]["orders"]), (&UNITS.into(), &UNITS.into()));
    assert_eq!(report["errors"], 0);
    assert_eq!(
        report["passes"]["granted"].as_u64().expect("count") as u32 / (USERS + 2),
        1,
        "second helpings come on top"
    );
    let count = |field: &str| report[field].as_u64().unwrap_or_else(|| panic!("{field}"));
    let parts =
        ["accepted", "accepted_again", "sold_out", "limited", "refused", "errors", "uncertain", "hung_up"];
    assert_eq!(count("attempts"), parts.into_iter().map(count).sum::<u64>());
    for word in ["sold-out", "not-started", "limit-reached", "pass-invalid"] {
        assert!(report["refusals"][word].as_u64().unwrap_or(0) > 0, "nobody heard {word}: {report:#}");
    }
    assert!(count("hung_up") > 0 && count("accepted_again") > 0);
    assert!(report["audit"]["demand"].as_u64().expect("demand") > 150);
}

#[tokio::test]
async fn passes_asked_for_at_the_opening_work_as_well() {
    let fake = Fake::start(Fault::Nothing).await;
    assert!(run(&options(&fake, "at-open")).await.expect("played"));
    let page = std::fs::read_to_string(fake.file("report.html")).expect("a page");
    assert!(page.contains("<svg") && page.contains("at-open"));
}

#[tokio::test]
async fn each_planted_fault_is_found_by_the_field_that_names_it() {
    // At once, since each spends most of its time waiting for its opening.
    let found = tokio::join!(
        must_find(Fault::Oversells, "oversold"),
        must_find(Fault::LosesARow, "lost"),
        must_find(Fault::StopsEarly, "leaked"),
        must_find(Fault::Rejects, "rejected_after_202"),
        must_find(Fault::Renames, "duplicated"),
        must_find(Fault::SellsSilently, "contradicted"),
    );
    assert_eq!(found.0["audit"]["oversold"], 3);
    assert_eq!(found.1["audit"]["lost"], 1);
    assert_eq!(found.2["audit"]["leaked"], 3);
}

#[tokio::test]
async fn answers_lost_by_the_server_are_errors_but_break_nothing() {
    let (good, report) = spike(Fault::HangsUp).await;
    assert!(good, "{report:#}");
    assert!(report["errors"].as_u64().expect("errors") > 0);
    assert_eq!(report["audit"]["orders"], UNITS);
}

#[tokio::test]
async fn a_target_that_asks_image_questions_is_wrong_usage() {
    let fake = Fake::start(Fault::AsksImages).await;
    let refused = run(&options(&fake, "presale")).await;
    let Err(Failure::Usage(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("image") && text.contains("gate.challenge"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_played_or_audited_is_said_before_the_crowd_comes() {
    let fake = Fake::start(Fault::KnowsNobody).await;
    let refused = run(&options(&fake, "presale")).await;
    let Err(Failure::Usage(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("--jwt-secret-file") && text.contains("auth.hs256_secret"), "{text}");

    let fake = Fake::start(Fault::Nothing).await;
    let with = |change: fn(&mut SpikeOptions)| {
        let mut options = options(&fake, "presale");
        change(&mut options);
        options
    };
    let failed = run(&with(|options| options.database_url = Some("sqlite://nowhere.db".into()))).await;
    let Err(Failure::World(text)) = failed else { panic!("{failed:?}") };
    assert!(text.contains("nowhere.db") && text.contains("--database-url"), "{text}");
    let failed = run(&with(|options| options.target = vec!["http://127.0.0.1:1".into()])).await;
    let Err(Failure::World(text)) = failed else { panic!("{failed:?}") };
    assert!(text.contains("http://127.0.0.1:1 does not answer"), "{text}");
    let failed = run(&with(|options| options.own.keep = Some("somewhere".into()))).await;
    let Err(Failure::Usage(text)) = failed else { panic!("{failed:?}") };
    assert!(text.contains("--keep"), "{text}");
}

#[tokio::test]
async fn puzzles_are_solved_unless_they_would_take_too_long() {
    let (good, report) = spike(Fault::AsksPuzzles(6)).await;
    assert!(good, "{report:#}");
    let fake = Fake::start(Fault::AsksPuzzles(30)).await;
    let refused = run(&options(&fake, "presale")).await;
    let Err(Failure::Usage(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("30 bits") && text.contains("gate.pow_bits"), "{text}");
}

#[test]
fn rows_are_laid_on_the_axis_of_the_presses() {
    assert_eq!(slices(&[1_000, 1_050, 1_320, 900], 1_000), [3, 0, 0, 1]);
    assert_eq!(slices(&[u64::MAX], 0), Vec::<u32>::new());
}

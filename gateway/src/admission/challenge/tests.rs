//! Questions judged, counted and used up, with the time and the randomness of a test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};
use stock::{SaleId, UserId};

use queue::Random;

use super::{ChallengeOptions, Challenges, CheckError, IssuedChallenge, Kind, pool};

const NOW_MS: u64 = 1_800_000_000_000;

fn seeded() -> Random {
    let counter = AtomicU64::new(1);
    Arc::new(move || {
        let digest = Sha256::digest(counter.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        u64::from_be_bytes(*digest.first_chunk().unwrap())
    })
}

fn secrets(ids: &[&str]) -> Vec<(String, Vec<u8>)> {
    ids.iter().map(|id| ((*id).to_owned(), format!("secret of {id}").into_bytes())).collect()
}

fn challenges(kind: Kind, ids: &[&str]) -> Challenges {
    drawn(kind, ids, Arc::new(|| NOW_MS))
}

/// Pictures by this clock.
fn pictures(now: stock::Now) -> Challenges {
    drawn(Kind::Image, &["k1"], now)
}

fn drawn(kind: Kind, ids: &[&str], now: stock::Now) -> Challenges {
    let options = ChallengeOptions { kind, pow_bits: 8, pool_size: 16, ..ChallengeOptions::default() };
    let challenges = Challenges::new(options, &secrets(ids), seeded(), now);
    while challenges.step() {}
    challenges
}

fn sale() -> SaleId {
    "demo".parse().unwrap()
}

fn user(name: &str) -> UserId {
    name.parse().unwrap()
}

/// Reads the serial out of a picture's question (it lies after version, key id, kind and nonce) as only a holder of the key can use it.
fn answer_of(challenges: &Challenges, issued: &IssuedChallenge) -> String {
    let opened = challenges.keys.open(&issued.challenge, &sale(), &user("ann")).unwrap();
    let super::Question::Picture { serial } = opened.question else { panic!("not a picture") };
    pool::answer(opened.answer_key, serial)
}

fn solve(issued: &IssuedChallenge) -> String {
    let puzzle = issued.puzzle.as_ref().unwrap();
    let mut numbers = 0u64..;
    let right = numbers.find(|n| {
        let digest = Sha256::digest(format!("{}:{n}", puzzle.prefix));
        let head = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        head.leading_zeros() >= u32::from(puzzle.bits)
    });
    right.unwrap().to_string()
}

#[test]
fn a_picture_is_served_and_answered_in_any_case() {
    let challenges = challenges(Kind::Image, &["k1"]);
    assert!(challenges.ready());
    let issued = challenges.issue(&sale(), &user("ann"), NOW_MS);
    assert_eq!(
        (issued.kind, issued.puzzle.clone(), issued.expires_at_ms),
        (Kind::Image, None, NOW_MS + 120_000)
    );
    let url = issued.image_url.clone().unwrap();
    let png = challenges.image(url.strip_prefix("/api/v1/challenges/").unwrap()).unwrap();
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    assert!(png.len() < 16 * 1024, "{} bytes", png.len());
    let answer = answer_of(&challenges, &issued).to_lowercase();
    assert_eq!(challenges.check(&issued.challenge, &answer, &sale(), &user("ann"), NOW_MS + 5), Ok(()));
    let again = challenges.check(&issued.challenge, &answer, &sale(), &user("ann"), NOW_MS + 6);
    assert_eq!(again, Err(CheckError::Expired));
}

#[test]
fn three_wrong_answers_use_a_question_up() {
    let challenges = challenges(Kind::Image, &["k1"]);
    let issued = challenges.issue(&sale(), &user("ann"), NOW_MS);
    for wrong in ["", "IIIII", "0O0O0O0O0O0O"] {
        let verdict = challenges.check(&issued.challenge, wrong, &sale(), &user("ann"), NOW_MS);
        assert_eq!(verdict, Err(CheckError::WrongAnswer));
    }
    let right = answer_of(&challenges, &issued);
    let verdict = challenges.check(&issued.challenge, &right, &sale(), &user("ann"), NOW_MS);
    assert_eq!(verdict, Err(CheckError::Expired));
}

#[test]
fn a_question_is_bound_to_user_sale_and_time() {
    let challenges = challenges(Kind::Image, &["k1"]);
    let issued = challenges.issue(&sale(), &user("ann"), NOW_MS);
    let right = answer_of(&challenges, &issued);
    let other: SaleId = "other".parse().unwrap();
    let check = |sale: &SaleId, name: &str, now_ms| {
        challenges.check(&issued.challenge, &right, sale, &user(name), now_ms)
    };
    assert_eq!(check(&sale(), "bob", NOW_MS), Err(CheckError::Malformed));
    assert_eq!(check(&other, "ann", NOW_MS), Err(CheckError::Malformed));
    assert_eq!(check(&sale(), "ann", NOW_MS + 120_000), Err(CheckError::Expired));
    assert_eq!(check(&sale(), "ann", NOW_MS + 119_999), Ok(()));
}

#[test]
fn no_altered_truncated_or_lengthened_token_is_accepted() {
    let challenges = challenges(Kind::Image, &["k1"]);
    let issued = challenges.issue(&sale(), &user("ann"), NOW_MS);
    let right = answer_of(&challenges, &issued);
    let refused = |token: &str| {
        challenges.check(token, &right, &sale(), &user("ann"), NOW_MS) == Err(CheckError::Malformed)
    };
    let token = &issued.challenge;
    for place in 0..token.len() {
        for other in [b'A', b'B', b'_', b'\0', b'=', b'.'] {
            let mut bytes = token.clone().into_bytes();
            if bytes[place] != other {
                bytes[place] = other;
                assert!(refused(&String::from_utf8(bytes).unwrap()));
            }
        }
        assert!(refused(&token[..place]));
    }
    assert!(refused(&format!("{token}A")) && refused(&"A".repeat(100_000)) && refused("\u{1F30A}"));
    let image = issued.image_url.unwrap();
    assert!(challenges.image(&token.clone()).is_none());
    assert!(challenges.image(&image[image.len() - 20..]).is_none() && challenges.image("").is_none());
}

#[test]
fn proof_of_work_is_solved_and_bound() {
    let challenges = challenges(Kind::ProofOfWork, &["k1"]);
    assert!(challenges.ready() && !challenges.step());
    let issued = challenges.issue(&sale(), &user("ann"), NOW_MS);
    let puzzle = issued.puzzle.clone().unwrap();
    assert_eq!((puzzle.algorithm, puzzle.bits, issued.kind), ("sha256", 8, Kind::ProofOfWork));
    let number = solve(&issued);
    let check =
        |name: &str, answer: &str| challenges.check(&issued.challenge, answer, &sale(), &user(name), NOW_MS);
    assert_eq!(check("bob", &number), Err(CheckError::Malformed));
    assert_eq!(check("ann", "0x1"), Err(CheckError::WrongAnswer));
    assert_eq!(check("ann", &number), Ok(()));
    assert_eq!(check("ann", &number), Err(CheckError::Expired));
}

#[test]
fn whoever_cannot_see_works_a_little_longer() {
    let challenges = challenges(Kind::Image, &["k1"]);
    let issued = challenges.issue_alternative(&sale(), &user("ann"), NOW_MS);
    assert_eq!(issued.puzzle.as_ref().unwrap().bits, 11);
    let number = solve(&issued);
    assert_eq!(challenges.check(&issued.challenge, &number, &sale(), &user("ann"), NOW_MS), Ok(()));
}

#[test]
fn before_the_first_picture_the_question_is_work() {
    let options = ChallengeOptions { pool_size: 16, ..ChallengeOptions::default() };
    let challenges = Challenges::new(options, &secrets(&["k1"]), seeded(), Arc::new(|| NOW_MS));
    assert!(!challenges.ready());
    assert_eq!(challenges.issue(&sale(), &user("ann"), NOW_MS).kind, Kind::ProofOfWork);
    for _ in 0..8 {
        challenges.step();
    }
    assert!(challenges.ready());
    assert_eq!(challenges.issue(&sale(), &user("ann"), NOW_MS).kind, Kind::Image);
}

#[test]
fn another_gateway_serves_and_judges_the_same_question() {
    let here = challenges(Kind::Image, &["k1"]);
    let there = challenges(Kind::Image, &["k1"]);
    let issued = here.issue(&sale(), &user("ann"), NOW_MS);
    let url = issued.image_url.clone().unwrap();
    assert!(there.image(url.rsplit('/').next().unwrap()).is_some());
    let right = answer_of(&here, &issued);
    assert_eq!(there.check(&issued.challenge, &right, &sale(), &user("ann"), NOW_MS), Ok(()));
}

#[test]
fn pictures_are_asked_for_by_the_clock_that_they_are_drawn_by() {
    let challenges = pictures(Arc::new(|| NOW_MS));
    let five_minutes_ms = 300_000;
    for sale_ms in [NOW_MS - five_minutes_ms, NOW_MS, NOW_MS + five_minutes_ms] {
        let issued = challenges.issue(&sale(), &user("ann"), sale_ms);
        let url = issued.image_url.unwrap();
        assert!(
            challenges.image(url.rsplit('/').next().unwrap()).is_some(),
            "drawn, whatever time the sale has"
        );
        assert_eq!(issued.expires_at_ms, sale_ms + 120_000, "the question itself goes by the sale's clock");
    }
}

#[test]
fn a_retired_key_still_verifies_and_an_unknown_one_does_not() {
    let old = challenges(Kind::Image, &["k1"]);
    let rotated = challenges(Kind::Image, &["k2", "k1"]);
    let later = challenges(Kind::Image, &["k2"]);
    let issued = old.issue(&sale(), &user("ann"), NOW_MS);
    let right = answer_of(&old, &issued);
    let check = |with: &Challenges| with.check(&issued.challenge, &right, &sale(), &user("ann"), NOW_MS);
    assert_eq!(check(&rotated), Ok(()));
    assert_eq!(check(&later), Err(CheckError::Malformed));
}

#[test]
fn askers_cost_no_drawing_and_share_the_pool() {
    let challenges = challenges(Kind::Image, &["k1"]);
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..5_000 {
        let issued = challenges.issue(&sale(), &user(&format!("u{n}")), NOW_MS);
        seen.insert(issued.image_url.unwrap());
    }
    assert_eq!(challenges.pool.len(), 16);
    assert_eq!(seen.len(), 10, "five eighths of the pool are being asked");
}

#[tokio::test(start_paused = true)]
async fn run_fills_and_rotates_by_the_injected_clock() {
    let start = tokio::time::Instant::now();
    let now: stock::Now = Arc::new(move || NOW_MS + start.elapsed().as_millis() as u64);
    let challenges = pictures(now);
    let before = challenges.issue(&sale(), &user("ann"), NOW_MS).image_url.unwrap();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(600), challenges.run()).await;
    assert_eq!(challenges.pool.len(), 16);
    assert!(challenges.image(before.rsplit('/').next().unwrap()).is_none());
}

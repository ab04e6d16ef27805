//! A wall clock that is wrong at a start, or for a moment: nothing of it stays.

use testbed::wrong_clock;

use crate::sale;
use crate::server::Site;

const DAY_S: i64 = 86_400;

fn metric(site: &Site, name: &str) -> f64 {
    let text = crate::server::request(site.admin, "GET", "/metrics", &[], "").expect("an answer").body;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().expect("a number")
}

fn has_condition(site: &Site, word: &str) -> bool {
    let answer = crate::server::request(site.admin, "GET", "/readyz", &[], "").expect("an answer");
    answer.json()["conditions"].as_array().is_some_and(|all| all.iter().any(|one| one["word"] == word))
}

#[test]
fn one_start_with_the_clock_a_day_ahead_settles_no_sale_for_good() {
    let site = Site::new(&sale("s", 3, -60));
    let server = site.start();
    let (_, pass, order) = site.pass("s", "ann");
    assert_eq!(site.press("s", &pass, "{}").status, 202);
    let (token, ..) = site.pass("s", "ann");
    let bearer = format!("Bearer {token}");
    let pay = format!("{{\"order_id\":\"{order}\"}}");
    let ask = || site.call("GET", &format!("/api/v1/orders/{order}"), &[("authorization", &bearer)], "");
    site.wait_for("row", ask, |answer| answer.status == 200 && answer.json()["status"] == "unpaid");
    let paid = || site.call("POST", "/api/v1/demo/payments", &[("authorization", &bearer)], &pay);
    site.wait_for("payment", paid, |answer| answer.status == 200);
    drop(server);

    // Everything goes by this one clock: nobody can tell that it is wrong, and the sale is over.
    let server = site.start_under(wrong_clock::ahead_by(DAY_S).expect("libfaketime"));
    let look = || site.call("GET", "/api/v1/sales/s", &[], "");
    site.wait_for("end", look, |answer| answer.status == 404);
    drop(server);

    let _server = site.start();
    site.wait_for("sale", look, |answer| answer.status == 200);
    // With what was bought before: ann has hers, and two units are left.
    let (_, pass, _) = site.pass("s", "ann");
    let again = site.press("s", &pass, "{}");
    assert_eq!(again.status, 409, "{}", again.body);
    assert_eq!(again.json()["order_ids"], serde_json::json!([order]));
    for user in ["bob", "eve"] {
        let (_, pass, _) = site.pass("s", user);
        assert_eq!(site.press("s", &pass, "{}").status, 202);
    }
    let refused = site.call("POST", "/api/v1/sales/s/passes", &[("authorization", &bearer)], "{}");
    assert_eq!(refused.status, 410, "{}", refused.body);
}

#[test]
fn an_hour_ahead_for_a_moment_does_no_lasting_harm() {
    let site = Site::new(&(sale("now", 3, -60) + &sale("later", 3, 500)));
    let clock = site.path().join("clock");
    wrong_clock::set(&clock, 0).expect("written");
    let _server = site.start_under(wrong_clock::as_in(&clock).expect("libfaketime"));
    assert!(!has_condition(&site, "clock-jumped"));
    let (token, now_pass, _) = site.pass("now", "ann");
    let (_, later_pass, _) = site.pass("later", "ann");

    wrong_clock::set(&clock, 3_600).expect("written");
    std::thread::sleep(std::time::Duration::from_secs(3));
    wrong_clock::set(&clock, 0).expect("written");

    // The first answers already are those of the right time.
    let press = |sale: &str, pass: &str| site.press(sale, pass, "{}");
    assert_eq!(press("now", &now_pass).status, 202);
    let early = press("later", &later_pass);
    assert_eq!((early.status, early.body.contains("not-started")), (403, true), "{}", early.body);
    let bearer = format!("Bearer {token}");
    let listed = site.call("GET", "/api/v1/orders?sale=now", &[("authorization", &bearer)], "");
    assert_eq!(listed.json()["orders"].as_array().map(Vec::len), Some(1), "{}", listed.body);

    // And it was seen.
    assert!(metric(&site, "floodgate_clock_jumps_total") >= 1.0);
    assert!(has_condition(&site, "clock-jumped"));
    assert!(site.log().contains("has jumped against the monotonic clock"), "{}", site.log());
}

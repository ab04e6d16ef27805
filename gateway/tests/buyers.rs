//! What buyers hear of their own orders of a sale, and of a sale that was edited since they were shown it.

mod support;

use serde_json::json;
use support::{ADMIN_TOKEN, Options, Site, bearer};

#[test]
fn a_second_device_finds_what_the_first_one_bought() {
    let mut options = Options::default();
    options.sale.per_user_limit = 3;
    let site = Site::start(options);
    site.await_recovered();
    let (mut buyer, ann, bob) = (site.connect(), bearer("ann"), bearer("bob"));
    let ask = |buyer: &mut support::Connection, who: &str| {
        let answer = buyer.get("/api/v1/orders?sale=demo", &[("Authorization", who)]);
        assert_eq!(
            (answer.status, answer.header("cache-control")),
            (200, Some("no-store")),
            "{}",
            answer.text()
        );
        answer.json()["orders"].clone()
    };
    let press = |buyer: &mut support::Connection, who: &str, quantity: u32| {
        let pass = buyer.post("/api/v1/sales/demo/passes", &[("Authorization", who)], "{}").json();
        let text = pass["pass"].as_str().expect("a pass").to_owned();
        let body = format!(r#"{{"quantity":{quantity}}}"#);
        buyer.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", &text)], &body)
    };
    assert_eq!(ask(&mut buyer, &ann), json!([]));

    let first = press(&mut buyer, &ann, 1).json()["order_id"].clone();
    let queued = ask(&mut buyer, &ann);
    assert_eq!(
        (&queued[0]["order_id"], &queued[0]["status"], &queued[0]["position"]),
        (&first, &json!("queued"), &json!(0))
    );
    site.drain();
    let second = press(&mut buyer, &ann, 2).json()["order_id"].clone();
    let both = ask(&mut buyer, &ann);
    let shown: Vec<_> = both
        .as_array()
        .expect("a list")
        .iter()
        .map(|o| (o["order_id"].clone(), o["status"].clone()))
        .collect();
    assert_eq!(shown, [(second.clone(), json!("queued")), (first.clone(), json!("unpaid"))]);
    assert_eq!(both[0]["amount"], 2_000);
    assert_eq!(ask(&mut buyer, &bob), json!([]), "not another's");

    // The refusal names them, the newest first.
    let refused = press(&mut buyer, &ann, 1);
    refused.is(409, "limit-reached");
    assert_eq!(refused.json()["order_ids"], json!([second, first]));
    let refused = press(&mut buyer, &bob, 4);
    refused.is(409, "limit-reached");
    assert!(refused.json().get("order_ids").is_none(), "{}", refused.text());

    // What is over is listed as well; it holds nothing any more.
    let path = format!("/api/v1/orders/{}/cancel", first.as_str().expect("an id"));
    assert_eq!(buyer.post(&path, &[("Authorization", &ann)], "{}").status, 200);
    assert_eq!(ask(&mut buyer, &ann)[1]["status"], "closed");
    let refused = press(&mut buyer, &ann, 2);
    assert_eq!(refused.json()["order_ids"], json!([second]));

    // Neither the sale nor the user is guessed.
    buyer.get("/api/v1/orders", &[("Authorization", &ann)]).is(400, "bad-request");
    buyer.get("/api/v1/orders?sale=demo&sale=x", &[("Authorization", &ann)]).is(400, "bad-request");
    buyer.get("/api/v1/orders?sale=none", &[("Authorization", &ann)]).is(404, "unknown-sale");
    buyer.get("/api/v1/orders?sale=demo", &[]).is(401, "unauthorized");
    assert_eq!(buyer.post("/api/v1/orders?sale=demo", &[("Authorization", &ann)], "{}").status, 405);
}

#[test]
fn a_buyer_who_was_shown_other_terms_is_told_before_anything_is_taken() {
    let mut options = Options::default();
    options.sale.per_user_limit = 9;
    let site = Site::start(options);
    site.await_recovered();
    let (mut buyer, ann) = (site.connect(), bearer("ann"));
    let edit = |body: &str| {
        let token = format!("Bearer {ADMIN_TOKEN}");
        site.admin().post("/admin/v1/sales/demo/edit", &[("Authorization", &token)], body)
    };
    let shown = |buyer: &mut support::Connection| {
        let sale = buyer.get("/api/v1/sales/demo", &[]).json();
        (sale["version"].clone(), sale["price"].clone())
    };
    let press = |buyer: &mut support::Connection, body: &str| {
        let pass = buyer.post("/api/v1/sales/demo/passes", &[("Authorization", &ann)], "{}").json();
        let text = pass["pass"].as_str().expect("a pass").to_owned();
        buyer.post("/api/v1/sales/demo/orders", &[("Floodgate-Pass", &text)], body)
    };
    assert_eq!(shown(&mut buyer), (json!(1), json!(1_000)));
    let old = press(&mut buyer, r#"{"sale_version":1}"#);
    assert_eq!(old.status, 202, "{}", old.text());

    let edited = edit(r#"{"price":1500,"reason":"a misprint"}"#);
    assert_eq!((edited.status, &edited.json()["standing"]), (200, &json!("in-force")), "{}", edited.text());
    assert_eq!(shown(&mut buyer), (json!(2), json!(1_500)));
    let before = site.snapshot();
    press(&mut buyer, r#"{"sale_version":1}"#).is(409, "sale-changed");
    assert_eq!(site.snapshot(), before, "nothing is taken");
    let new = press(&mut buyer, r#"{"sale_version":2}"#);
    assert_eq!(new.status, 202, "{}", new.text());
    // What buyers only read is no reason to ask them again; nor is who names no version.
    assert_eq!(edit(r#"{"title":"mended","ends_at":"2099-01-01T00:00:00Z"}"#).status, 200);
    assert_eq!(shown(&mut buyer), (json!(3), json!(1_500)));
    assert_eq!(press(&mut buyer, r#"{"sale_version":2}"#).status, 202);
    assert_eq!(press(&mut buyer, "{}").status, 202);
    press(&mut buyer, r#"{"sale_version":"2"}"#).is(400, "bad-request");

    // Each record names the version under which it was promised, and each order costs what was shown.
    let versions: Vec<_> = site.log().iter().map(|record| record.sale_version).collect();
    assert_eq!(versions, [Some(1), Some(2), Some(3), Some(3)]);
    let orders = buyer.get("/api/v1/orders?sale=demo", &[("Authorization", &ann)]).json();
    let amounts: Vec<_> =
        orders["orders"].as_array().expect("a list").iter().map(|o| o["amount"].clone()).collect();
    assert_eq!(amounts, [json!(1_500), json!(1_500), json!(1_500), json!(1_000)]);
    let path = format!("/api/v1/orders/{}", old.json()["order_id"].as_str().expect("an id"));
    assert_eq!(buyer.get(&path, &[("Authorization", &ann)]).json()["amount"], 1_000);

    for wrong in ["{}", r#"{"total":5}"#, r#"{"price":"2"}"#, r#"{"reason":"none"}"#] {
        edit(wrong).is(400, "bad-request");
    }
}

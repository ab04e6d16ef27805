//! The list of sales: rendered once a change, right at once after one, bounded as a whole.
//!
//! `cargo test -p gateway --test listing -- --nocapture once_a_change` prints what a request costs.

mod support;

use std::time::Instant;

use gateway::catalog::{Catalog, CatalogSale};
use stock::{FlagState, FlagVersion, SaleDefinition, SaleId};
use support::{Connection, Options, Site};

/// The longest list that `GET /api/v1/sales` gives, bytes.
const LIST_BYTES_MAX: usize = 1 << 20;

fn offered(sales: impl Iterator<Item = SaleDefinition>) -> Vec<CatalogSale> {
    sales
        .map(|definition| CatalogSale {
            version: 1,
            terms_version: 1,
            total: definition.total,
            paused_by: None,
            epoch: 1,
            definition,
        })
        .collect()
}

/// So many sales, each with a description of so many characters.
fn described(count: usize, chars: usize) -> Vec<CatalogSale> {
    let sale = |n: usize| SaleDefinition {
        description: "秒".repeat(chars),
        ..support::sale(&format!("sale-{n:05}"))
    };
    offered((0..count).map(sale))
}

fn catalog(site: &Site) -> &Catalog {
    site.gateway.catalog()
}

fn renders(site: &Site) -> Option<u64> {
    let metrics = site.admin().get("/metrics", &[]).text();
    let line = metrics.lines().find(|line| line.starts_with("floodgate_sales_lists_rendered_total"))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn list(connection: &mut Connection) -> serde_json::Value {
    let answer = connection.get("/api/v1/sales", &[]);
    assert_eq!(answer.status, 200);
    answer.json()
}

#[test]
fn the_list_is_rendered_once_a_change() {
    let mut options = Options::default();
    options.gateway.threads = 1;
    let site = Site::start(options);
    let sales = described(50, 3_000);
    catalog(&site).replace(sales.clone());
    let mut connection = site.connect();
    let first = connection.get("/api/v1/sales", &[]);
    assert_eq!(first.json()["sales"].as_array().expect("sales").len(), 50);
    let etag = first.header("etag").expect("an ETag").to_owned();
    let before = renders(&site);

    for (what, headers, status) in
        [("200", vec![], 200), ("304", vec![("If-None-Match", etag.as_str())], 304)]
    {
        let begun = Instant::now();
        for _ in 0..500 {
            assert_eq!(connection.get("/api/v1/sales", &headers).status, status);
            // The root package hands them over again every second, changed or not.
            catalog(&site).replace(sales.clone());
        }
        println!("{what}: {} µs a request and a hand-over", begun.elapsed().as_micros() / 500);
        let begun = Instant::now();
        for _ in 0..500 {
            assert_eq!(connection.get("/api/v1/sales", &headers).status, status);
        }
        println!("{what}: {} µs a request", begun.elapsed().as_micros() / 500);
    }
    assert!(before.is_some(), "renders are not counted");
    assert_eq!(renders(&site), before, "2,000 requests and no change");
}

#[test]
fn what_changes_without_the_catalog_shows_at_once() {
    let site = Site::start(Options::default());
    let sales = described(20, 10);
    catalog(&site).replace(sales.clone());
    let mut connection = site.connect();
    let before = renders(&site).expect("a count");
    let sold_out =
        |list: &serde_json::Value, n: usize| list["sales"][n]["sold_out"].as_bool().expect("a bool");
    assert!(!sold_out(&list(&mut connection), 3));
    let id: SaleId = "sale-00003".parse().expect("an id");
    for counter in 1..=6 {
        let says = counter % 2 == 1;
        let state = FlagState { sold_out: says, version: FlagVersion { epoch: 1, counter } };
        site.runtime.block_on(site.stock.flag().publish(&id, state)).expect("published");
        for _ in 0..10 {
            assert_eq!(sold_out(&list(&mut connection), 3), says);
            let one = connection.get("/api/v1/sales/sale-00003", &[]).json();
            assert_eq!(one["sold_out"], says);
        }
    }
    // Unknown is not sold out, and what is heard after a flag was forgotten counts again.
    let state = |sold_out, counter| FlagState { sold_out, version: FlagVersion { epoch: 1, counter } };
    site.runtime.block_on(site.stock.flag().publish(&id, state(true, 7))).expect("published");
    assert!(sold_out(&list(&mut connection), 3));
    site.stock.flag().forget(&id);
    assert!(!sold_out(&list(&mut connection), 3));
    catalog(&site).replace(sales.clone());
    site.runtime.block_on(site.stock.flag().publish(&id, state(true, 8))).expect("published");
    assert!(sold_out(&list(&mut connection), 3));
    let rendered = renders(&site).expect("a count") - before;
    assert!((7..=12).contains(&rendered), "{rendered} renders for 9 changes");

    let mut paused = sales;
    paused[3].paused_by = Some("operator".into());
    paused[3].version = 2;
    catalog(&site).replace(paused);
    assert_eq!(list(&mut connection)["sales"][3]["paused"], true);
    assert_eq!(connection.get("/api/v1/sales/sale-00003", &[]).json()["paused"], true);
}

#[test]
fn a_long_list_is_bounded() {
    let site = Site::start(Options::default());
    let mut connection = site.connect();
    // Too long with descriptions: all sales, and each one's description at its own address.
    catalog(&site).replace(described(200, 10_000));
    let answer = connection.get("/api/v1/sales", &[]);
    assert!(answer.body.len() <= LIST_BYTES_MAX, "{} bytes", answer.body.len());
    let list = answer.json();
    assert_eq!(list["sales"].as_array().expect("sales").len(), 200);
    assert_eq!(
        (&list["sales"][7]["id"], &list["sales"][7]["description"]),
        (&"sale-00007".into(), &"".into())
    );
    assert_eq!((&list["descriptions_left_out"], &list["sales_left_out"]), (&true.into(), &0.into()));
    let one = connection.get("/api/v1/sales/sale-00007", &[]).json();
    assert_eq!(one["description"].as_str().expect("a text").chars().count(), 10_000);

    // Too long without: those that open last stay, since the first are over first.
    catalog(&site).replace(described(5_000, 0));
    let answer = connection.get("/api/v1/sales", &[]);
    assert!(answer.body.len() <= LIST_BYTES_MAX, "{} bytes", answer.body.len());
    let list = answer.json();
    let sales = list["sales"].as_array().expect("sales");
    assert_eq!(list["sales_left_out"], 5_000 - sales.len());
    assert_eq!(sales.last().expect("a sale")["id"], "sale-04999");
    assert!(sales.len() > 1_000, "{} sales", sales.len());
    assert_eq!(connection.get("/api/v1/sales/sale-00000", &[]).status, 200, "it is on offer all the same");

    catalog(&site).replace(described(2, 10));
    let list = self::list(&mut connection);
    assert!(list.get("sales_left_out").is_none() && list.get("descriptions_left_out").is_none(), "{list}");
}

//! A sale's versions, and the operators' journal.

use order_worker::database::{By, CancelOutcome, DatabaseError, LedgerChange, Published, SaleRow};
use order_worker::journal::{Broken, Chain, Head, HeadWatch, JournalKey, Record, Seen, verify_chain};
use serde_json::{Value, json};
use stock::Owner;

use super::*;

/// The whole journal, read in small pages and followed row by row.
pub(crate) async fn whole_journal(database: &Database) -> Vec<Record> {
    let (mut chain, mut rows) = (Chain::new(journal_key(), Vec::new()), Vec::new());
    loop {
        let page = database.journal(chain.head().seq, 3).await.unwrap();
        page.iter().try_for_each(|record| chain.follow(record)).unwrap();
        rows.extend_from_slice(&page);
        if page.len() < 3 {
            break;
        }
    }
    let head = chain.finish().unwrap();
    assert_eq!(database.journal_head().await.unwrap(), (head, head));
    assert_eq!(head.seq as usize, rows.len());
    rows
}

fn parsed(text: &Option<String>) -> Value {
    text.as_deref().map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

async fn must_have_offered(fixture: &Fixture, row: &SaleRow) {
    let version = fixture.database.sale_version(&row.definition.id, row.version).await.unwrap().unwrap();
    let whole = SaleDefinition { total: row.total, ..row.definition.clone() };
    assert_eq!((version.version, &version.definition), (row.version, &whole));
    assert_eq!((version.paused_by, version.by_whom.as_str()), (row.paused_by.clone(), "小明"));
}

pub(crate) async fn every_version_is_kept_as_it_was_offered(fixture: Fixture) {
    let (database, author) = (&fixture.database, author().because("it sells well"));
    let id = fixture.publish("s", 100, 1).await.id;
    must_have_offered(&fixture, &database.sale(&id).await.unwrap().unwrap()).await;
    let restocked = database.restock(&id, "r", 5, &author).await.unwrap();
    let paused = database.pause(&id, "alice", &author).await.unwrap();
    fixture.advance(10);
    let ended = database.end_now(&id, &author).await.unwrap();
    let resumed = database.resume(&id, &author).await.unwrap();
    for (version, row) in (2..).zip([&restocked, &paused, &ended, &resumed]) {
        assert_eq!(row.version, version);
        must_have_offered(&fixture, row).await;
    }
    let version = database.sale_version(&id, 4).await.unwrap().unwrap();
    assert_eq!((version.definition.ends_at.0, version.at.0), (START_MS + 10, START_MS + 10));
    assert_eq!(version.reason.as_deref(), Some("it sells well"));
    assert_eq!(database.sale_version(&id, 1).await.unwrap().unwrap().reason, None);

    // What changes nothing makes no version, nor do units that are sold.
    database.restock(&id, "r", 5, &author).await.unwrap();
    database.resume(&id, &author).await.unwrap();
    database.end_now(&id, &author).await.unwrap();
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    for absent in [0, 6] {
        assert_eq!(database.sale_version(&id, absent).await.unwrap(), None);
    }
    assert_eq!(database.sale_version(&sale_id("t"), 1).await.unwrap(), None);
}

pub(crate) async fn a_change_has_its_row_in_the_journal_and_no_change_none(fixture: Fixture) {
    let (database, author) = (&fixture.database, author());
    let definition = fixture.publish("s", 100, 2).await;
    let id = definition.id.clone();
    database.pause(&id, "alice", &author).await.unwrap();
    fixture.advance(10);
    database.resume(&id, &author.clone().because("as agreed")).await.unwrap();
    database.restock(&id, "r", 5, &author).await.unwrap();
    fixture.settle_one(reservation("s", 1, "somebody", 2)).await;
    database.cancel(order_id(1), By::Operator(&author)).await.unwrap();
    database.end_now(&id, &journal_key().config()).await.unwrap();
    let rows = whole_journal(database).await;
    let named: Vec<_> = rows.iter().map(|row| (row.action.as_str(), row.operator.as_str())).collect();
    assert_eq!(
        named,
        [
            ("sale publish", "小明"),
            ("sale pause", "小明"),
            ("sale resume", "小明"),
            ("sale restock", "小明"),
            ("order cancel", "小明"),
            ("sale end", "config"),
        ]
    );
    let roles: Vec<_> = rows.iter().map(|row| row.role.as_str()).collect();
    assert_eq!(roles, ["operate", "operate", "operate", "operate", "operate", "config"]);
    assert!(
        rows.iter().all(|row| row.subject == if row.seq == 5 { order_id(1).to_string() } else { "s".into() })
    );
    assert_eq!(
        (rows[1].at.as_str(), rows[2].at.as_str()),
        ("2026-11-11T12:00:00.000Z", "2026-11-11T12:00:00.010Z")
    );
    assert_eq!((rows[2].reason.as_deref(), &rows[3].reason), (Some("as agreed"), &None));
    assert_eq!((&rows[0].before, parsed(&rows[0].after)["price"].clone()), (&None, json!(206_640)));
    assert_eq!(parsed(&rows[1].before)["paused_by"], Value::Null);
    assert_eq!(parsed(&rows[1].after)["paused_by"], json!("alice"));
    assert_eq!(
        (&parsed(&rows[3].before)["total"], &parsed(&rows[3].after)["total"]),
        (&json!(100), &json!(105))
    );
    assert_eq!(
        (&parsed(&rows[3].after)["restock_id"], &parsed(&rows[3].after)["units"]),
        (&json!("r"), &json!(5))
    );
    assert_eq!(parsed(&rows[4].before)["status"], json!("unpaid"));
    assert_eq!(parsed(&rows[4].after)["status"], json!("closed"));
    assert!(!format!("{:?}", rows[4]).contains("somebody"), "a buyer stands in the journal");

    // Repeats, refusals, and what buyers do.
    database.publish(&definition, &author).await.unwrap();
    let differs = SaleDefinition { price: 1, ..definition.clone() };
    assert!(matches!(database.publish(&differs, &author).await.unwrap(), Published::Differs(_)));
    database.resume(&id, &author).await.unwrap();
    database.restock(&id, "r", 5, &author).await.unwrap();
    database.restock(&id, "r", 6, &author).await.unwrap_err();
    database.pause(&sale_id("t"), "alice", &author).await.unwrap_err();
    database.cancel(order_id(1), By::Operator(&author)).await.unwrap();
    database.cancel(order_id(2), By::Operator(&author)).await.unwrap();
    fixture.settle_one(reservation("s", 3, "u", 1)).await;
    let own = database.cancel(order_id(3), By::User(&user_id("u"))).await.unwrap();
    assert!(matches!(own, CancelOutcome::Cancelled(_)));
    assert_eq!(whole_journal(database).await, rows);
}

pub(crate) async fn changes_of_the_ledger_are_in_the_journal(fixture: Fixture) {
    let (database, author) = (&fixture.database, author());
    database.register_instance(7, "host-7:/queue", "disk", true).await.unwrap();
    assert_eq!(database.change_ledger(0, LedgerChange::Rebuild, &author).await.unwrap(), 1);
    assert_eq!(database.change_ledger(0, LedgerChange::Rebuild, &author).await.unwrap(), 1, "a repeat");
    let forget = || LedgerChange::Forget(Owner(7));
    assert_eq!(database.change_ledger(1, forget(), &author).await.unwrap(), 2);
    assert_eq!(database.change_ledger(1, forget(), &author).await.unwrap(), 2, "a repeat");
    assert!(database.instances().await.unwrap()[0].left_out);
    let adopt = LedgerChange::Adopt(vec![sale_id("s"), sale_id("t")]);
    assert_eq!(database.change_ledger(8, adopt, &author).await.unwrap(), 9, "beyond what the ledger had");
    assert_eq!(database.epoch().await.unwrap(), 9);
    let rows = whole_journal(database).await;
    let said: Vec<_> = rows
        .iter()
        .map(|row| (row.action.as_str(), row.subject.as_str(), parsed(&row.before), parsed(&row.after)))
        .collect();
    assert_eq!(
        said,
        [
            ("ledger rebuild", "ledger", json!({"epoch": 0}), json!({"epoch": 1})),
            (
                "ledger forget",
                &*Owner(7).to_string(),
                json!({"epoch": 1, "place": "host-7:/queue"}),
                json!({"epoch": 2})
            ),
            ("ledger adopt", "ledger", json!({"epoch": 2}), json!({"epoch": 9, "sales": ["s", "t"]})),
        ]
    );
    // Members, which begin lives by themselves, are no operators.
    database.next_epoch_after(9, &[], UNSEEN).await.unwrap();
    assert_eq!(whole_journal(database).await.len(), 3);
    // A log whose life is over already is forgotten all the same.
    database.register_instance(8, "elsewhere", "disk", true).await.unwrap();
    assert_eq!(database.change_ledger(3, LedgerChange::Forget(Owner(8)), &author).await.unwrap(), 10);
    assert!(database.instances().await.unwrap().iter().all(|row| row.left_out));
    assert_eq!(whole_journal(database).await.len(), 4);
    // So is one without promises, for which no life has to begin.
    database.register_instance(9, "host-9:/log", "disk", false).await.unwrap();
    database.register_instance(10, "host-10:/queue", "disk", true).await.unwrap();
    for owner in [9, 9, 10, 11] {
        database.forget_log(Owner(owner), &author).await.unwrap();
    }
    let rows = database.instances().await.unwrap();
    let left: Vec<_> = rows.iter().filter(|row| !row.left_out).map(|row| row.owner).collect();
    assert_eq!((left, database.epoch().await.unwrap()), (vec![Owner(10)], 10));
    let rows = whole_journal(database).await;
    let (last, place) = (rows.last().unwrap(), json!({"place": "host-9:/log", "holds_promises": false}));
    assert_eq!((rows.len(), last.subject.clone(), parsed(&last.before)), (5, Owner(9).to_string(), place));
}

pub(crate) async fn another_secret_forks_no_chain(fixture: Fixture) {
    let database = &fixture.database;
    let (own, other) = (journal_key(), JournalKey::new(&[8; 32]));
    let (ours, theirs) = tokio::join!(database.tie_journal(&own), database.tie_journal(&other));
    assert!(ours.is_ok() != theirs.is_ok(), "of two at once one decides: {ours:?} {theirs:?}");
    let (tied, stranger) = if ours.is_ok() { (own, other) } else { (other, own) };
    database.tie_journal(&tied).await.unwrap();
    let refused = |error: DatabaseError| {
        let words = error.to_string();
        assert!(matches!(error, DatabaseError::Broken(_)), "{words}");
        assert!(words.contains("admin.journal_secret") && words.contains(&stranger.id()), "{words}");
    };
    refused(database.tie_journal(&stranger).await.unwrap_err());
    let definition = definition("s", 5, 5);
    database.publish(&definition, &tied.config()).await.unwrap();
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    let before = database.sale(&definition.id).await.unwrap();
    let author = stranger.operator("mallory");
    refused(database.pause(&definition.id, "mallory", &author).await.unwrap_err());
    refused(database.restock(&definition.id, "r", 1, &author).await.unwrap_err());
    refused(database.end_now(&definition.id, &author).await.unwrap_err());
    refused(database.cancel(order_id(1), By::Operator(&author)).await.unwrap_err());
    refused(database.change_ledger(0, LedgerChange::Rebuild, &author).await.unwrap_err());
    refused(database.publish(&super::definition("t", 1, 1), &author).await.unwrap_err());
    assert_eq!(database.sale(&definition.id).await.unwrap(), before, "a refused change was made");
    assert_eq!((database.sales().await.unwrap().len(), database.epoch().await.unwrap()), (1, 0));
    assert_eq!(database.order(order_id(1)).await.unwrap().unwrap().version, 1);
    assert_eq!(database.sale_version(&definition.id, 2).await.unwrap(), None);
    let rows = database.journal(0, 10).await.unwrap();
    assert_eq!(verify_chain(&tied, &rows, &[]).unwrap().seq, 1);
    assert_eq!(verify_chain(&stranger, &rows, &[]), Err(Broken::Changed { seq: 1 }));
}

pub(crate) async fn changers_at_once_write_one_chain(fixture: Fixture) {
    const CHANGERS: u64 = 8;
    const ROUNDS: u64 = 6;
    fixture.publish("shared", 1_000, 1_000).await;
    let batch: Vec<_> = (0..CHANGERS * ROUNDS).map(|n| reservation("shared", n, "u", 1)).collect();
    fixture.database.settle(batch).await.unwrap();
    let change = |changer: u64| {
        let database = fixture.database.clone();
        tokio::spawn(async move {
            let author = journal_key().operator(&format!("operator {changer}"));
            let (own, shared) = (sale_id(&format!("own-{changer}")), sale_id("shared"));
            database.publish(&definition(own.as_str(), 5, 1), &author).await.unwrap();
            for round in 0..ROUNDS {
                database.pause(&own, "me", &author).await.unwrap();
                database.restock(&shared, &format!("{changer} {round}"), 1, &author).await.unwrap();
                let order = order_id(changer * ROUNDS + round);
                database.cancel(order, By::Operator(&author)).await.unwrap();
                database.resume(&own, &author).await.unwrap();
            }
            let epoch = database.epoch().await.unwrap();
            database.change_ledger(epoch, LedgerChange::Rebuild, &author).await.unwrap();
        })
    };
    let changers: Vec<_> = (0..CHANGERS).map(change).collect();
    for changer in changers {
        changer.await.unwrap();
    }
    let rows = whole_journal(&fixture.database).await;
    let of = |word: &str| rows.iter().filter(|row| row.action.starts_with(word)).count() as u64;
    let sales = fixture.database.sales().await.unwrap();
    assert_eq!(of("sale "), sales.iter().map(|row| row.version).sum::<u64>(), "each version has its row");
    assert_eq!(of("order cancel"), CHANGERS * ROUNDS);
    assert_eq!(of("ledger rebuild"), fixture.database.epoch().await.unwrap());
    for row in &sales {
        for version in 1..=row.version {
            assert!(fixture.database.sale_version(&row.definition.id, version).await.unwrap().is_some());
        }
    }
    let books = fixture.database.books(Some(&sale_id("shared"))).await.unwrap();
    assert_eq!((books[0].sold, books[0].total), (0, Some(1_000 + (CHANGERS * ROUNDS) as u32)));
}

pub(crate) async fn the_head_is_looked_at_every_hour(fixture: Fixture) {
    let database = &fixture.database;
    let mut watch = HeadWatch::new(database.clone(), clock(&fixture.now));
    assert_eq!(watch.look().await.unwrap(), Seen::Head(Head::default()), "at the start");
    fixture.publish("s", 1, 1).await;
    assert_eq!(watch.look().await.unwrap(), Seen::Nothing);
    fixture.advance(3_599_999);
    assert_eq!(watch.look().await.unwrap(), Seen::Nothing);
    fixture.advance(1);
    let (head, _) = database.journal_head().await.unwrap();
    assert_eq!((watch.look().await.unwrap(), head.seq), (Seen::Head(head), 1));
    assert_eq!(watch.look().await.unwrap(), Seen::Nothing);
    fixture.advance(7_200_000);
    assert_eq!(watch.look().await.unwrap(), Seen::Head(head), "a clock that jumped");
}

//! Sales, epoch and instances.

use order_worker::database::{
    Ahead, Begun, By, DatabaseError, LIFTED_EPOCH, LedgerChange, Published, RejectReason,
};
use queue::Opening;
use stock::{DeploymentId, Owner, SaleEdit, SaleId, Timestamp};

use super::*;

pub(crate) async fn publish_is_insert_if_absent(fixture: Fixture) {
    let definition = fixture.publish("s", 100, 2).await;
    assert_eq!(fixture.database.publish(&definition, &author()).await.unwrap(), Published::Unchanged);
    let row = fixture.database.sale(&definition.id).await.unwrap().unwrap();
    assert_eq!(row.definition, definition);
    assert_eq!((row.version, row.total, row.sold), (1, 100, 0));
    assert_eq!((row.paused_by.clone(), row.opened_epoch, row.settled), (None, None, false));
    assert_eq!(row.ends_at, definition.ends_at);
    let version = row.ledger_version();
    assert_eq!((version.version, version.total, version.paused), (1, 100, false));
    assert_eq!(version.starts_at_ms, definition.starts_at.0);
    assert_eq!(fixture.database.sales().await.unwrap(), [row]);
    assert_eq!(fixture.database.sale(&sale_id("other")).await.unwrap(), None);
}

pub(crate) async fn publish_compares_with_the_first_definition(fixture: Fixture) {
    let definition = fixture.publish("s", 100, 1).await;
    fixture.database.restock(&definition.id, "r", 50, &author()).await.unwrap();
    fixture.database.end_now(&definition.id, &author()).await.unwrap();
    assert_eq!(fixture.database.publish(&definition, &author()).await.unwrap(), Published::Unchanged);
    let mut other = definition.clone();
    other.price = 1;
    other.total = 150;
    let Published::Differs(difference) = fixture.database.publish(&other, &author()).await.unwrap() else {
        panic!("a different definition was not noticed")
    };
    assert_eq!(difference, "price: 206640 → 1\ntotal: 100 → 150");
    assert_eq!(fixture.database.sale(&definition.id).await.unwrap().unwrap().definition.price, 206_640);
}

pub(crate) async fn publish_refuses_what_can_never_work(fixture: Fixture) {
    for spoil in
        [(|d| d.total = 0) as fn(&mut SaleDefinition), |d| d.ends_at = d.starts_at, |d| d.price = u64::MAX]
    {
        let mut bad = definition("s", 1, 1);
        spoil(&mut bad);
        let error = fixture.database.publish(&bad, &author()).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Invalid(_)), "{error:?}");
    }
    assert!(fixture.database.sales().await.unwrap().is_empty());
}

pub(crate) async fn sale_changes_bump_the_version(fixture: Fixture) {
    let id = fixture.publish("s", 100, 1).await.id;
    let database = &fixture.database;
    let row = database.pause(&id, "alice", &author()).await.unwrap();
    assert_eq!((row.version, row.paused_by.as_deref()), (2, Some("alice")));
    assert!(row.ledger_version().paused);
    let row = database.pause(&id, "bob", &author()).await.unwrap();
    assert_eq!((row.version, row.paused_by.as_deref()), (2, Some("alice")), "the first name stays");
    let row = database.resume(&id, &author()).await.unwrap();
    assert_eq!((row.version, row.paused_by), (3, None));
    assert_eq!(database.resume(&id, &author()).await.unwrap().version, 3);
    assert_eq!(database.restock(&id, "r", 5, &author()).await.unwrap().version, 4);
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    assert_eq!(database.sale(&id).await.unwrap().unwrap().version, 4, "sold is not part of the version");
}

pub(crate) async fn restock_is_idempotent_by_its_id(fixture: Fixture) {
    let id = fixture.publish("s", 100, 1).await.id;
    let other = fixture.publish("t", 100, 1).await.id;
    let database = &fixture.database;
    assert_eq!(database.restock(&id, "r1", 50, &author()).await.unwrap().total, 150);
    let again = database.restock(&id, "r1", 50, &author()).await.unwrap();
    assert_eq!((again.total, again.version), (150, 2));
    let error = database.restock(&id, "r1", 51, &author()).await.unwrap_err();
    let differs = matches!(&error, DatabaseError::RestockDiffers { recorded: 50, asked: 51, .. });
    assert!(differs, "{error:?}");
    assert_eq!(database.restock(&id, "r2", 1, &author()).await.unwrap().total, 151);
    assert_eq!(
        database.restock(&other, "r1", 7, &author()).await.unwrap().total,
        107,
        "ids are a sale's own"
    );
}

pub(crate) async fn restock_is_bounded(fixture: Fixture) {
    let id = fixture.publish("s", 100, 1).await.id;
    for units in [0, u32::MAX] {
        let error = fixture.database.restock(&id, "r", units, &author()).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Invalid(_)), "{error:?}");
    }
    let row = fixture.database.restock(&id, "r", u32::MAX - 100, &author()).await.unwrap();
    assert_eq!((row.total, row.version), (u32::MAX, 2), "a refused restock left its id behind");
}

pub(crate) async fn end_now_moves_the_window(fixture: Fixture) {
    let id = fixture.publish("s", 1, 1).await.id;
    let row = fixture.database.end_now(&id, &author()).await.unwrap();
    assert_eq!((row.ends_at, row.version), (Timestamp(START_MS), 2));
    assert_eq!(row.definition.ends_at, row.ends_at);
    fixture.advance(10);
    assert_eq!(fixture.database.end_now(&id, &author()).await.unwrap(), row, "an ended sale stays as it is");
    let mut future = definition("f", 1, 1);
    future.starts_at = Timestamp(START_MS + 60_000);
    fixture.database.publish(&future, &author()).await.unwrap();
    let row = fixture.database.end_now(&future.id, &author()).await.unwrap();
    assert!(row.ledger_version().starts_at_ms <= row.ledger_version().ends_at_ms);
}

pub(crate) async fn opened_and_settled_are_remembered(fixture: Fixture) {
    let id = fixture.publish("s", 1, 1).await.id;
    for epoch in [0, 3, 3, 2] {
        fixture.database.mark_opened(&id, epoch).await.unwrap();
    }
    let (later, unsettled) = (fixture.publish("t", 1, 1).await.id, async || -> Vec<SaleId> {
        let rows = fixture.database.unsettled_sales().await.unwrap();
        rows.into_iter().map(|row| row.definition.id).collect()
    });
    assert_eq!(unsettled().await, [id.clone(), later.clone()]);
    assert!(!fixture.database.mark_settled(&id).await.unwrap(), "it has not ended");
    fixture.advance(3_600_000);
    assert!(fixture.database.mark_settled(&id).await.unwrap());
    assert!(fixture.database.mark_settled(&id).await.unwrap());
    assert_eq!(unsettled().await, [later]);
    let row = fixture.database.sale(&id).await.unwrap().unwrap();
    assert_eq!((row.opened_epoch, row.settled, row.version), (Some(3), true, 1));
    let error = fixture.database.restock(&id, "r", 1, &author()).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Invalid(_)), "{error:?}");
}

pub(crate) async fn a_sale_settles_only_when_nothing_is_outstanding(fixture: Fixture) {
    let id = fixture.publish("s", 1, 1).await.id;
    fixture.settle_one(reservation("s", 1, "u", 1)).await;
    fixture.advance(3_600_000);
    assert!(!fixture.database.mark_settled(&id).await.unwrap(), "an order is unpaid");
    fixture.database.cancel(order_id(1), By::Operator(&author())).await.unwrap();
    assert!(!fixture.database.mark_settled(&id).await.unwrap(), "a release is owed");
    fixture.database.releases_done(&[order_id(1)]).await.unwrap();
    assert!(fixture.database.mark_settled(&id).await.unwrap());
}

pub(crate) async fn settled_is_lifted_when_the_end_lies_ahead_again(fixture: Fixture) {
    let database = &fixture.database;
    let (sold, never_opened) = (fixture.publish("s", 3, 1).await.id, fixture.publish("t", 3, 1).await.id);
    assert!(database.claim_install(&sold, 2).await.unwrap());
    database.mark_opened(&sold, 2).await.unwrap();
    // By a clock that is a day ahead.
    fixture.advance(86_400_000);
    for sale in [&sold, &never_opened] {
        assert!(database.mark_settled(sale).await.unwrap());
        assert!(!database.lift_settled(sale).await.unwrap(), "it is over");
    }
    assert_eq!(database.settled_too_early().await.unwrap(), []);
    fixture.go_back(86_400_000);
    assert_eq!(database.settled_too_early().await.unwrap(), [sold.clone(), never_opened.clone()]);
    for sale in [&sold, &never_opened] {
        for _ in 0..2 {
            assert!(database.lift_settled(sale).await.unwrap());
        }
    }
    assert_eq!(database.settled_too_early().await.unwrap(), []);
    assert_eq!(database.unsettled_sales().await.unwrap().len(), 2);
    let row = database.sale(&sold).await.unwrap().unwrap();
    assert_eq!(
        (row.opened_epoch, row.installed_epoch),
        (Some(LIFTED_EPOCH), None),
        "it holds orders in no life"
    );
    assert!(!database.sale(&never_opened).await.unwrap().unwrap().was_opened());
    // In the same life as before.
    assert!(database.claim_install(&sold, 2).await.unwrap());
    assert!(!database.claim_install(&sold, 2).await.unwrap());
    database.mark_opened(&sold, 2).await.unwrap();
    assert_eq!(database.sale(&sold).await.unwrap().unwrap().opened_epoch, Some(2));
}

pub(crate) async fn an_edit_is_a_version_with_terms_of_its_own(fixture: Fixture) {
    let database = &fixture.database;
    let published = fixture.publish("s", 3, 2).await;
    let id = &published.id;
    let edit = async |edit: SaleEdit| database.edit_sale(id, &edit, &author()).await;
    let row = edit(SaleEdit { title: Some("月饼".into()), ..SaleEdit::default() }).await.unwrap();
    assert_eq!((row.version, row.terms_version, &*row.definition.title), (2, 1, "月饼"));
    assert_eq!(
        edit(SaleEdit { title: Some("月饼".into()), ..SaleEdit::default() }).await.unwrap(),
        row,
        "no change"
    );
    let row = edit(SaleEdit { price: Some(7), pay_within_s: Some(60), ..SaleEdit::default() }).await.unwrap();
    assert_eq!((row.version, row.terms_version, row.definition.price), (3, 3, 7));
    assert_eq!(row.ledger_version().terms_version, 3);
    assert_eq!(database.sale(id).await.unwrap().unwrap(), row);
    let first = database.sale_version(id, 1).await.unwrap().unwrap();
    assert_eq!(first.definition, published);
    let third = database.sale_version(id, 3).await.unwrap().unwrap();
    assert_eq!((third.definition.price, &*third.definition.title), (7, "月饼"));

    // A configuration that says the same publishes it no second time; the first one differs now.
    assert_eq!(database.publish(&row.definition, &author()).await.unwrap(), Published::Unchanged);
    let Published::Differs(difference) = database.publish(&published, &author()).await.unwrap() else {
        panic!()
    };
    assert!(difference.contains("price: 7 → ") && difference.contains("title"), "{difference}");

    let none = SaleEdit { price: Some(1), ..SaleEdit::default() };
    let unknown = database.edit_sale(&sale_id("other"), &none, &author()).await;
    assert!(matches!(unknown, Err(DatabaseError::UnknownSale(_))));
    let impossible = edit(SaleEdit { currency: Some("yen".into()), ..SaleEdit::default() }).await;
    assert!(matches!(impossible, Err(DatabaseError::Invalid(why)) if why.contains("currency")));
    assert_eq!(database.sale(id).await.unwrap().unwrap(), row, "nothing was written");
}

pub(crate) async fn a_window_is_moved_only_while_everybody_can_hear_of_it(fixture: Fixture) {
    let database = &fixture.database;
    let now_ms = fixture.now.load(Ordering::SeqCst);
    let at = |seconds: u64| Timestamp(now_ms + seconds * 1_000);
    let sale = SaleDefinition { starts_at: at(60), ends_at: at(600), ..definition("s", 3, 1) };
    database.publish(&sale, &author()).await.unwrap();
    let starts = |seconds| SaleEdit { starts_at: Some(at(seconds)), ..SaleEdit::default() };
    let ends = |seconds| SaleEdit { ends_at: Some(at(seconds)), ..SaleEdit::default() };
    let edit = async |edit: SaleEdit| match database.edit_sale(&sale.id, &edit, &author()).await {
        Ok(row) => Ok((row.definition.starts_at, row.ends_at)),
        Err(DatabaseError::Invalid(why)) => Err(why),
        Err(error) => panic!("{error}"),
    };
    assert_eq!(edit(starts(120)).await, Ok((at(120), at(600))), "postponed");
    assert_eq!(edit(starts(60)).await, Ok((at(60), at(600))), "and brought forward");
    assert!(edit(starts(9)).await.is_err_and(|why| why.contains("10 s ahead")));
    assert_eq!(edit(ends(500)).await, Ok((at(60), at(500))), "shortened");
    assert!(edit(ends(50)).await.is_err_and(|why| why.contains("ends_at")));
    // The last 10 s before the start.
    fixture.advance(50_001);
    assert!(edit(starts(120)).await.is_err_and(|why| why.contains("10 s before the start")));
    assert!(edit(ends(400)).await.is_err_and(|why| why.contains("10 s before the start")));
    assert_eq!(edit(ends(700)).await, Ok((at(60), at(700))), "prolonged at any time");
    // It runs.
    fixture.advance(20_000);
    assert!(edit(starts(120)).await.is_err());
    assert_eq!(edit(ends(400)).await, Ok((at(60), at(400))));
    assert!(edit(ends(70)).await.is_err_and(|why| why.contains("must lie ahead")));
    // It is over, settled and forgotten, and goes on.
    fixture.advance(400_000);
    assert!(database.mark_settled(&sale.id).await.unwrap());
    assert_eq!(edit(ends(900)).await, Ok((at(60), at(900))));
    assert_eq!(database.settled_too_early().await.unwrap(), std::slice::from_ref(&sale.id));
}

pub(crate) async fn a_database_is_one_deployment(fixture: Fixture) {
    let database = &fixture.database;
    assert_eq!(database.known_deployment().await.unwrap(), None, "no process has used it yet");
    let (one, two, three) = tokio::join!(
        database.deployment(DeploymentId(1)),
        database.deployment(DeploymentId(2)),
        database.deployment(DeploymentId(u128::MAX))
    );
    let made = one.unwrap();
    assert!([DeploymentId(1), DeploymentId(2), DeploymentId(u128::MAX)].contains(&made));
    assert_eq!((two.unwrap(), three.unwrap()), (made, made), "of several one decides");
    assert_eq!(database.deployment(DeploymentId(7)).await.unwrap(), made);
    assert_eq!(database.known_deployment().await.unwrap(), Some(made));
    assert_eq!(database.next_epoch_after(0, &[], UNSEEN).await.unwrap(), Begun::Epoch(1), "beside the epoch");
    assert_eq!(database.known_deployment().await.unwrap(), Some(made));
}

pub(crate) async fn epochs_rise(fixture: Fixture) {
    assert_eq!(fixture.database.epoch().await.unwrap(), 0);
    for expected in 1..12 {
        assert_eq!(fixture.database.next_epoch().await.unwrap(), expected);
        assert_eq!(fixture.database.epoch().await.unwrap(), expected);
    }
}

pub(crate) async fn a_lost_life_is_followed_by_one_next(fixture: Fixture) {
    let database = &fixture.database;
    let begin = async |current| database.next_epoch_after(current, &[], UNSEEN).await.unwrap();
    assert_eq!(begin(0).await, Begun::Epoch(1));
    assert_eq!(begin(0).await, Begun::Epoch(1), "a repeat skips none");
    assert_eq!(begin(7).await, Begun::Epoch(1));
    let second = Begun::Epoch(2);
    assert_eq!(tokio::join!(begin(1), begin(1), begin(1)), (second.clone(), second.clone(), second));
    assert_eq!(database.epoch().await.unwrap(), 2);
}

pub(crate) async fn what_a_log_has_merged_is_remembered(fixture: Fixture) {
    let database = &fixture.database;
    let merged = async || {
        let instances = database.instances().await.unwrap();
        instances.iter().map(|instance| instance.merged_epoch).collect::<Vec<_>>()
    };
    database.register_instance(7, "a", "disk", true).await.unwrap();
    database.register_instance(8, "b", "disk", true).await.unwrap();
    assert_eq!(merged().await, [0, 0]);
    for (epoch, remembered) in [(3, 3), (3, 3), (2, 3), (4, 4)] {
        database.report_merged(7, epoch).await.unwrap();
        assert_eq!(merged().await, [remembered, 0]);
    }
    database.report_merged(9, 4).await.unwrap();
    assert_eq!(merged().await, [4, 0], "who is not registered is not made so");
    database.register_instance(7, "moved", "disk", true).await.unwrap();
    assert_eq!(merged().await, [4, 0], "a move changes nothing of it");
    database.deregister_instance(7).await.unwrap();
    database.register_instance(7, "back", "disk", true).await.unwrap();
    assert_eq!(merged().await, [0, 0], "a forgotten instance comes back as a new one");
}

pub(crate) async fn one_caller_may_install_a_sale_at_an_epoch(fixture: Fixture) {
    let id = fixture.publish("s", 1, 1).await.id;
    let other = fixture.publish("t", 1, 1).await.id;
    let database = &fixture.database;
    let (one, two) = tokio::join!(database.claim_install(&id, 3), database.claim_install(&id, 3));
    assert!(one.unwrap() != two.unwrap(), "exactly one");
    assert!(!database.claim_install(&id, 3).await.unwrap());
    assert!(!database.claim_install(&id, 2).await.unwrap(), "an older epoch is over");
    assert!(database.claim_install(&other, 3).await.unwrap(), "each sale has its own");
    assert!(database.claim_install(&id, 4).await.unwrap());
    let row = database.sale(&id).await.unwrap().unwrap();
    assert_eq!((row.installed_epoch, row.opened_epoch, row.version), (Some(4), None, 1));
    let unknown = sale_id("nowhere");
    let error = database.claim_install(&unknown, 1).await.unwrap_err();
    assert_eq!(error, order_worker::DatabaseError::UnknownSale(unknown));
}

pub(crate) async fn instances_are_registered_by_id(fixture: Fixture) {
    let database = &fixture.database;
    database.register_instance(u64::MAX, "data/queue", "disk", true).await.unwrap();
    database.register_instance(7, "host-7:/queue", "disk", true).await.unwrap();
    fixture.advance(5);
    database.register_instance(u64::MAX, "elsewhere", "rocketmq", false).await.unwrap();
    let instances = database.instances().await.unwrap();
    let kinds: Vec<_> = instances.iter().map(|i| (i.engine.as_str(), i.holds_promises)).collect();
    assert_eq!(kinds, [("disk", true), ("rocketmq", false)], "as given last");
    let seen: Vec<_> = instances.iter().map(|i| (i.owner, i.place.as_str(), i.registered_at.0)).collect();
    assert_eq!(seen, [(Owner(7), "host-7:/queue", START_MS), (Owner(u64::MAX), "elsewhere", START_MS + 5)]);
    database.deregister_instance(7).await.unwrap();
    database.deregister_instance(7).await.unwrap();
    assert_eq!(database.instances().await.unwrap().len(), 1);
}

pub(crate) async fn an_opening_is_registered_over_the_one_before(fixture: Fixture) {
    let database = &fixture.database;
    let of = |generation, nonce| Opening { generation, nonce };
    let (first, second, third) = (of(1, u64::MAX), of(2, 0), of(3, 7));
    let register = async |before, opening| {
        database.register_opening(Owner(7), ("here", "disk"), before, opening).await.unwrap()
    };
    let row = async || database.instances().await.unwrap().remove(0);
    assert!(register(None, first).await);
    assert_eq!((row().await.opening, row().await.merged_epoch), (Some(first), 0));
    assert!(register(None, first).await, "a repeat");
    database.report_merged(7, 5).await.unwrap();
    assert!(register(Some(first), second).await);
    assert!(register(Some(first), second).await, "a repeat after a lost answer");
    assert_eq!((row().await.opening, row().await.merged_epoch), (Some(second), 5));
    for before in [None, Some(first), Some(third), Some(of(2, 1)), Some(of(1, 0))] {
        assert!(!register(before, third).await, "{before:?}");
    }
    assert_eq!(row().await.opening, Some(second));
    let (one, other) = (of(3, 1), of(3, 2));
    let (a, b) = tokio::join!(register(Some(second), one), register(Some(second), other));
    assert!(a != b, "of two that open it at once one does");
    database.deregister_instance(7).await.unwrap();
    assert!(register(Some(one), third).await, "who was forgotten comes back");

    // What nobody has tied.
    database.register_instance(8, "there", "disk", true).await.unwrap();
    let there = async || database.instances().await.unwrap().remove(1);
    assert_eq!(there().await.opening, None);
    assert!(!database.register_opening(Owner(8), ("there", "disk"), Some(first), second).await.unwrap());
    assert!(database.register_opening(Owner(8), ("there", "disk"), None, first).await.unwrap());
    database.register_instance(8, "moved", "disk", true).await.unwrap();
    assert_eq!((there().await.opening, there().await.place), (Some(first), "moved".to_owned()));
}

pub(crate) async fn a_log_whose_start_was_refused_is_left_out_again(fixture: Fixture) {
    let (database, log) = (&fixture.database, Owner(7));
    database.register_instance(7, "here", "disk", true).await.unwrap();
    database.next_epoch().await.unwrap();
    for _ in 0..2 {
        database.leave_out_again(log).await.unwrap();
        assert!(database.instances().await.unwrap()[0].left_out);
    }
    database.leave_out_again(Owner(8)).await.unwrap();
    assert_eq!((database.instances().await.unwrap().len(), database.epoch().await.unwrap()), (1, 1));
}

pub(crate) async fn a_log_that_was_left_out_keeps_its_row(fixture: Fixture) {
    let database = &fixture.database;
    let (log, opening) = (Owner(7), Opening { generation: 3, nonce: 9 });
    assert!(database.register_opening(log, ("here", "disk"), None, opening).await.unwrap());
    database.report_merged(7, 4).await.unwrap();
    let row = async || database.instances().await.unwrap().remove(0);
    assert!(row().await.takes_part() && row().await.is_awaited(5) && !row().await.is_awaited(4));
    assert_eq!(database.change_ledger(4, LedgerChange::Forget(log), &author()).await.unwrap(), 5);
    assert_eq!((row().await.left_out, row().await.opening), (true, Some(opening)));
    assert!(!row().await.takes_part() && !row().await.is_awaited(9));
    assert_eq!(database.change_ledger(4, LedgerChange::Forget(log), &author()).await.unwrap(), 5, "a repeat");
    let copy = Opening { generation: 2, nonce: 9 };
    assert!(
        !database
            .register_opening(log, ("here", "disk"), Some(copy), Opening { generation: 4, nonce: 1 })
            .await
            .unwrap()
    );
    assert!(row().await.left_out, "an older copy does not bring it back");
    assert!(
        database
            .register_opening(log, ("back", "disk"), Some(opening), Opening { generation: 4, nonce: 1 })
            .await
            .unwrap()
    );
    assert_eq!(
        (row().await.left_out, row().await.merged_epoch),
        (false, 0),
        "as one that has merged nothing"
    );
}

/// The ledger keeps what is newer: against it a database that was put back wins only with newer versions.
pub(crate) async fn a_life_begins_above_the_versions_of_the_ledger(fixture: Fixture) {
    let (behind, level, ahead) = (
        fixture.publish("behind", 10, 1).await.id,
        fixture.publish("level", 20, 1).await.id,
        fixture.publish("ahead", 30, 1).await.id,
    );
    let database = &fixture.database;
    for id in ["a", "b"] {
        database.restock(&ahead, id, 1, &author()).await.unwrap();
    }
    let above = [
        (level.clone(), 1, false),
        (behind.clone(), 6, true),
        (ahead.clone(), 2, true),
        (sale_id("nowhere"), 3, false),
    ];
    let above = above.map(|(sale, version, paused)| (sale, Ahead { version, paused }));
    let versions = async || {
        let rows = database.sales().await.unwrap();
        rows.iter().map(|row| (row.definition.id.clone(), row.version, row.total)).collect::<Vec<_>>()
    };
    assert_eq!(
        database.next_epoch_after(3, &above, UNSEEN).await.unwrap(),
        Begun::Epoch(0),
        "another life is in force"
    );
    let before = [(ahead.clone(), 3, 32), (behind.clone(), 1, 10), (level.clone(), 1, 20)];
    assert_eq!(versions().await, before, "nothing but with the life");
    assert_eq!(database.next_epoch_after(0, &above, UNSEEN).await.unwrap(), Begun::Epoch(1));
    let after = [(ahead.clone(), 3, 32), (behind.clone(), 7, 10), (level, 2, 20)];
    assert_eq!(versions().await, after, "each above, what it offers as it was");
    assert_eq!(database.next_epoch_after(0, &above, UNSEEN).await.unwrap(), Begun::Epoch(1), "a repeat");
    assert_eq!(versions().await, after);
    let kept = database.sale_version(&behind, 7).await.unwrap().unwrap();
    assert_eq!((kept.definition.total, kept.by_whom.as_str()), (10, "floodgate"));
    let pauses: Vec<_> = database.sales().await.unwrap().into_iter().map(|row| row.paused_by).collect();
    assert_eq!(
        pauses,
        [None, Some("stock ledger".to_owned()), None],
        "a pause stays where the row is the older one"
    );
    assert_eq!(kept.paused_by.as_deref(), Some("stock ledger"));
    assert!(database.sale(&behind).await.unwrap().unwrap().was_opened(), "it was in a ledger");
    assert!(kept.reason.is_some_and(|reason| reason.contains("ahead of the database")));
    assert_eq!(database.sale_version(&ahead, 4).await.unwrap(), None);
    let restocked = database.restock(&behind, "c", 5, &author()).await.unwrap();
    assert_eq!((restocked.version, restocked.total), (8, 15), "changes go on from there");
}

pub(crate) async fn unknown_sales_are_named(fixture: Fixture) {
    let id = sale_id("nowhere");
    let database = &fixture.database;
    let unknown = Err(DatabaseError::UnknownSale(id.clone()));
    assert_eq!(database.restock(&id, "r", 1, &author()).await, unknown);
    assert_eq!(database.pause(&id, "a", &author()).await, unknown);
    assert_eq!(database.resume(&id, &author()).await, unknown);
    assert_eq!(database.end_now(&id, &author()).await, unknown);
    assert_eq!(database.mark_opened(&id, 1).await, Err(DatabaseError::UnknownSale(id.clone())));
    assert_eq!(database.mark_settled(&id).await, Err(DatabaseError::UnknownSale(id)));
}

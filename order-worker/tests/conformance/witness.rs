//! Which ledger a life was built on, who sees which, and who may begin the next one.

use order_worker::database::{Begun, Life, Sight, WITNESS_MAX_MS, Witness};
use stock::{LedgerIdentity, LedgerSight, Owner};

use super::*;

fn ledger(name: &str) -> LedgerIdentity {
    LedgerIdentity::new(name)
}

fn sees(member: u64, name: &str) -> Sight {
    let ledger = Some(LedgerSight { ledger: ledger(name), is_witness: true });
    Sight { member: Some(Owner(member)), ledger }
}

fn refused(by: u64, name: &str) -> Begun {
    Begun::Refused(Witness { ledger: ledger(name), by: Owner(by), place: format!("host-{by}:/queue") })
}

/// The present life is epoch 1 on `one`, by member 7; 8 and 9 are registered, the latter as a worker.
async fn first_life(fixture: &Fixture) {
    for member in [7, 8, 9] {
        let place = format!("host-{member}:/queue");
        fixture.database.register_instance(member, &place, "disk", member < 9).await.unwrap();
    }
    assert_eq!(fixture.database.next_epoch_after(0, &[], sees(7, "one")).await.unwrap(), Begun::Epoch(1));
}

async fn life(fixture: &Fixture) -> (u64, String) {
    let Life { epoch, ledger } = fixture.database.life().await.unwrap();
    (epoch, ledger.map(|ledger| ledger.to_string()).unwrap_or_default())
}

pub(crate) async fn a_life_is_recorded_with_its_ledger(fixture: Fixture) {
    assert_eq!(life(&fixture).await, (0, String::new()));
    first_life(&fixture).await;
    assert_eq!(life(&fixture).await, (1, "one".into()));
    // A repeat of what somebody else has carried out meanwhile records nothing.
    let late = fixture.database.next_epoch_after(0, &[], sees(8, "two")).await.unwrap();
    assert_eq!((late, life(&fixture).await), (Begun::Epoch(1), (1, "one".into())));
    let operators = order_worker::database::LedgerChange::Rebuild;
    assert_eq!(fixture.database.change_ledger(1, operators, &author()).await.unwrap(), 2);
    assert_eq!(life(&fixture).await, (2, "one".into()), "an operator's word moves it to no other ledger");
    fixture.advance(WITNESS_MAX_MS);
    fixture.database.next_epoch_after(2, &[], UNSEEN).await.unwrap();
    assert_eq!(life(&fixture).await, (3, String::new()), "one in a process's memory has no name");
}

pub(crate) async fn another_ledger_waits_for_those_that_see_the_recorded_one(fixture: Fixture) {
    first_life(&fixture).await;
    let database = &fixture.database;
    let begin = async |current, sight| database.next_epoch_after(current, &[], sight).await.unwrap();
    assert_eq!(begin(1, sees(8, "two")).await, refused(7, "one"));
    assert_eq!(begin(1, UNSEEN).await, refused(7, "one"), "nor does one in a process's memory take over");
    assert_eq!(life(&fixture).await, (1, "one".into()));
    // The recorded ledger may begin the next life itself, though another member sees it.
    assert_eq!(begin(1, sees(9, "one")).await, Begun::Epoch(2));
    fixture.advance(WITNESS_MAX_MS - 1);
    database.bear_witness(Owner(9), ledger("one")).await.unwrap();
    fixture.advance(1);
    assert_eq!(begin(2, sees(8, "two")).await, refused(9, "one"), "a worker is a witness as well");
    fixture.advance(WITNESS_MAX_MS - 1);
    assert_eq!(begin(2, sees(8, "two")).await, Begun::Epoch(3), "5 s after the last word");
    assert_eq!(life(&fixture).await, (3, "two".into()));

    // Now the others are elsewhere, until the last one has moved on.
    assert_eq!(begin(3, sees(7, "one")).await, refused(8, "two"));
    database.bear_witness(Owner(8), ledger("one")).await.unwrap();
    assert_eq!(begin(3, sees(7, "one")).await, Begun::Epoch(4));
    assert_eq!(life(&fixture).await, (4, "one".into()));
}

pub(crate) async fn of_other_ledgers_the_one_that_most_see_takes_over(fixture: Fixture) {
    first_life(&fixture).await;
    let database = &fixture.database;
    let begin = async |current, sight| database.next_epoch_after(current, &[], sight).await.unwrap();
    for member in [7, 8] {
        database.bear_witness(Owner(member), ledger("one again")).await.unwrap();
    }
    assert_eq!(begin(1, sees(9, "two")).await, refused(7, "one again"), "two against one");
    assert_eq!(begin(1, UNSEEN).await, refused(7, "one again"));
    let mut doubtful = sees(9, "one again");
    doubtful.ledger.as_mut().unwrap().is_witness = false;
    assert_eq!(begin(1, doubtful).await, Begun::Epoch(2));

    // As many here as there: whoever asks first.
    database.bear_witness(Owner(8), ledger("two")).await.unwrap();
    database.bear_witness(Owner(7), ledger("three")).await.unwrap();
    database.deregister_instance(9).await.unwrap();
    assert_eq!(begin(2, sees(7, "three")).await, Begun::Epoch(3));
    assert_eq!(life(&fixture).await, (3, "three".into()));
}

pub(crate) async fn words_that_do_not_count(fixture: Fixture) {
    first_life(&fixture).await;
    let database = &fixture.database;
    let begin = async |current, sight| database.next_epoch_after(current, &[], sight).await.unwrap();
    // Its own: the server behind its address was exchanged.
    assert_eq!(begin(1, sees(7, "two")).await, Begun::Epoch(2));
    // Of one that cannot tell whether there are two primaries.
    let mut doubtful = sees(8, "two");
    doubtful.ledger.as_mut().unwrap().is_witness = false;
    assert_eq!(begin(7, doubtful).await, Begun::Epoch(2));
    // Of nobody in the registry.
    database.bear_witness(Owner(99), ledger("two")).await.unwrap();
    // Of one that has moved on.
    database.bear_witness(Owner(7), ledger("three")).await.unwrap();
    assert_eq!(begin(2, sees(9, "three")).await, Begun::Epoch(3));
    assert_eq!(database.instances().await.unwrap().len(), 3, "a word registers nobody");
    // From the future, before the database's clock was put back.
    fixture.advance(WITNESS_MAX_MS + 1);
    database.bear_witness(Owner(8), ledger("three")).await.unwrap();
    fixture.now.fetch_sub(WITNESS_MAX_MS + 1, Ordering::SeqCst);
    assert_eq!(begin(3, sees(7, "four")).await, refused(9, "three"));
    database.deregister_instance(9).await.unwrap();
    assert_eq!(begin(3, sees(7, "four")).await, Begun::Epoch(4), "nor of one that has left");
}

pub(crate) async fn of_several_ledgers_one_takes_over(fixture: Fixture) {
    first_life(&fixture).await;
    fixture.advance(WITNESS_MAX_MS);
    let database = &fixture.database;
    let (two, three) = tokio::join!(
        database.next_epoch_after(1, &[], sees(8, "two")),
        database.next_epoch_after(1, &[], sees(9, "three"))
    );
    assert_eq!((two.unwrap(), three.unwrap()), (Begun::Epoch(2), Begun::Epoch(2)));
    let (epoch, recorded) = life(&fixture).await;
    assert_eq!(epoch, 2, "one of them began it");
    // Each has said what it sees: the other one is refused.
    let (loser, winner, its) = if recorded == "two" { (9, 8, "three") } else { (8, 9, "two") };
    assert_eq!(
        database.next_epoch_after(2, &[], sees(loser, its)).await.unwrap(),
        refused(winner, &recorded)
    );
}

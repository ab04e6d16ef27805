//! The independent audit: it counts right, sees damage, and does not cry wolf.

use stock::ledger::redis::RedisAudit;

use super::*;

async fn audit() -> RedisAudit {
    RedisAudit::connect(&config(&SHARED.url())).await.unwrap()
}

#[tokio::test]
async fn it_counts_page_by_page() {
    let sale = Sale::open(&connect_patiently(&SHARED.url()).await, 5_000).await;
    for from in (0..3_000).step_by(500) {
        assert_eq!(sale.take(from..from + 500).await, 500);
    }
    for from in (0..1_000).step_by(500) {
        sale.ledger.confirm(sale.id(), &sale.settlements(from..from + 500)).await.unwrap();
    }
    sale.ledger.release(sale.id(), &sale.settlements(0..300)).await.unwrap();
    let audit = audit().await;
    let found = audit.sale(sale.id()).await.unwrap().unwrap();
    assert_eq!(found.conserved(), Some(true), "{found:?}");
    let counted = &found.counted;
    assert_eq!(
        (counted.pending_orders, counted.confirmed_orders, counted.released_orders),
        (2_000, 700, 300)
    );
    assert_eq!((counted.users, counted.user_units, counted.fresh), (2_700, 2_700, 3_000));
    // Whoever lists files the fresh ids in the index.
    let page = sale.ledger.pending(sale.id(), None, None, 7).await.unwrap();
    assert_eq!(page.len(), 7);
    let filed = audit.sale(sale.id()).await.unwrap().unwrap();
    assert_eq!((filed.counted.indexed, filed.counted.fresh, filed.conserved()), (2_000, 0, Some(true)));
    assert_eq!((found.total, found.remaining, found.epoch, found.open), (5_000, 2_300, 1, true));
    assert_eq!(audit.sale(&"nobody".parse().unwrap()).await.unwrap(), None);

    let pending = audit.pending_for(sale.id(), 0).await.unwrap();
    assert_eq!(pending.len(), 2_000);
    let listed = sale.ledger.pending(sale.id(), None, None, 7).await.unwrap();
    for (found, (owner, reservation)) in pending.iter().zip(listed) {
        assert_eq!((found.order_id, found.owner, found.quantity), (reservation.order_id, owner, 1));
        assert_eq!(found.reserved_at_ms, reservation.reserved_at_ms);
    }
    assert_eq!(audit.pending_for(sale.id(), 3_600_000).await.unwrap(), [], "none for so long");
}

#[tokio::test]
async fn it_sees_what_does_not_add_up() {
    let ledger = connect_patiently(&SHARED.url()).await;
    let audit = audit().await;
    let orders: [(&str, &[&str], &str); 7] = [
        ("fresh", &["DEL", "KEY"], "2 pending ids are not"),
        ("books", &["HINCRBY", "KEY", "remaining", "1"], "is not remaining"),
        ("books", &["HDEL", "KEY", "confirmed"], "no confirmed"),
        ("mine", &["HSET", "KEY", "user-1", "2:"], "user-1 holds 1 units by the orders, 2 are kept"),
        (
            "mine",
            &["HSET", "KEY", "user-1", "1:0123456789abcdef"],
            "user-1 holds 1 orders, and the 1 that are kept",
        ),
        ("pending", &["ZADD", "KEY", "0", "nobody"], "not pending"),
        ("orders", &["HSET", "KEY", "nobody", "x"], "nobody can read"),
    ];
    for (kind, command, word) in orders {
        let sale = Sale::open(&ledger, 10).await;
        assert_eq!(sale.take([1, 2]).await, 2);
        let key = format!("{{fg:{}}}:{kind}", sale.id());
        let command: Vec<&str> =
            command.iter().map(|part| if *part == "KEY" { &key } else { *part }).collect();
        SHARED.command(&command).unwrap();
        let found = audit.sale(sale.id()).await.unwrap().unwrap();
        assert_eq!(found.conserved(), Some(false), "{command:?}: {found:?}");
        assert!(
            found.findings.iter().any(|finding| finding.contains(word)),
            "{command:?}: {:?}",
            found.findings
        );
    }
}

#[tokio::test]
async fn a_sale_that_moves_is_not_called_broken() {
    let ledger = connect_patiently(&SHARED.url()).await;
    let sale = Sale::open(&ledger, 1_000_000).await;
    let audit = audit().await;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let traffic = async {
        let mut from = 0;
        while !stop.load(Ordering::Relaxed) {
            sale.take(from..from + 100).await;
            sale.ledger.confirm(sale.id(), &sale.settlements(from..from + 60)).await.unwrap();
            sale.ledger.release(sale.id(), &sale.settlements(from + 40..from + 80)).await.unwrap();
            from += 100;
            // Moving is what counts; growing only makes each count longer.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let counting = async {
        let (mut counts, mut moved) = (0, 0);
        while counts < 8 || (moved == 0 && counts < 1_000) {
            counts += 1;
            let found = audit.sale(sale.id()).await.unwrap().unwrap();
            assert_ne!(found.conserved(), Some(false), "{:?}", found.findings);
            moved += u32::from(found.moving);
        }
        stop.store(true, Ordering::Relaxed);
        moved
    };
    let ((), moved) = tokio::join!(traffic, counting);
    assert!(moved > 0, "the traffic was there");
    let found = audit.sale(sale.id()).await.unwrap().unwrap();
    assert_eq!(found.conserved(), Some(true), "{found:?}");
}

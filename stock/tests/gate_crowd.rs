//! What the gate does with a crowd of which a part never comes.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stock::ledger::{GrantOutcome, GrantRequest, Ledger, ReserveBatch, ReserveRequest, counts_until_ms};
use stock::{EmbeddedLedger, OrderId, Owner, SaleId, SaleVersion, UserId};

const UNITS: u64 = 1_000;
const OPENS_MS: u64 = 1_700_000_000_000;
const PASS_TTL_MS: u64 = 120_000;

struct Scene {
    ledger: Ledger,
    clock: Arc<AtomicU64>,
    sale: SaleId,
    presses: u64,
}

impl Scene {
    async fn new(passes_per_unit: u32) -> Self {
        let clock = Arc::new(AtomicU64::new(OPENS_MS - 60_000));
        let time = clock.clone();
        let ledger = Ledger::Embedded(EmbeddedLedger::new(Arc::new(move || time.load(Ordering::Relaxed))));
        let sale: SaleId = "crowd".parse().unwrap();
        let version = SaleVersion {
            sale: sale.clone(),
            version: 1,
            total: UNITS as u32,
            starts_at_ms: OPENS_MS,
            ends_at_ms: OPENS_MS + 3_600_000,
            per_user_limit: 1,
            passes_per_unit,
            paused: false,
            terms_version: 1,
        };
        ledger.install(&version, 1).await.unwrap();
        ledger.open(&sale, 1).await.unwrap();
        Self { ledger, clock, sale, presses: 0 }
    }

    fn order(&self, n: u64) -> OrderId {
        // As good as random, and the same at each run.
        OrderId::new(OPENS_MS, &self.sale, n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    async fn grant(&self, n: u64) -> GrantOutcome {
        let usable_ms = self.clock.load(Ordering::Relaxed).max(OPENS_MS);
        let (order_id, expires_at_ms) = (self.order(n), usable_ms + PASS_TTL_MS);
        let counts_until_ms = counts_until_ms(order_id, usable_ms, expires_at_ms);
        let request = GrantRequest { user: user(n), order_id, expires_at_ms, counts_until_ms };
        self.ledger.grant(&self.sale, 1, &request).await.unwrap().0
    }

    async fn press(&mut self, n: u64) {
        self.presses += 1;
        let request = ReserveRequest { order_id: self.order(n), user: user(n), quantity: 1, metadata: None };
        let batch = ReserveBatch {
            sale: self.sale.clone(),
            epoch: 1,
            deadline_ms: self.clock.load(Ordering::Relaxed) + 1_000,
            terms_version: 1,
            owner: Owner(1),
            requests: vec![request],
        };
        self.ledger.reserve(&batch).await.unwrap();
    }
}

fn user(n: u64) -> UserId {
    format!("user-{n}").parse().unwrap()
}

/// Three of ten who answered early never come; the others press within 3 s; and newcomers ask all the time.
#[tokio::test]
async fn early_passes_that_nobody_uses_do_not_block_an_unsold_sale() {
    let mut scene = Scene::new(1).await;
    for n in 0..UNITS {
        assert_eq!(scene.grant(n).await, GrantOutcome::Granted);
    }
    assert_eq!(scene.grant(UNITS).await, GrantOutcome::GateFull);
    let mut newcomer = UNITS + 1;
    for ms in 0..10_000 {
        scene.clock.store(OPENS_MS + ms, Ordering::Relaxed);
        for n in (0..UNITS).filter(|n| n % 10 >= 3 && n * 3_000 / UNITS == ms) {
            scene.press(n).await;
        }
        if ms % 10 == 0 {
            match scene.grant(newcomer).await {
                GrantOutcome::Granted => scene.press(newcomer).await,
                GrantOutcome::GateFull | GrantOutcome::SoldOut => {}
                GrantOutcome::Existing { .. } => panic!("newcomer {newcomer} is new"),
            }
            newcomer += 1;
        }
    }
    assert!((UNITS * 95 / 100..=UNITS * 105 / 100).contains(&scene.presses), "{} presses", scene.presses);
    let left = scene.ledger.snapshot(&scene.sale).await.unwrap().remaining;
    assert!(left <= 50, "{left} of {UNITS} units are left after 10 s");
}

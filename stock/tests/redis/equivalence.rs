//! Random calls against the embedded ledger and the one in Redis: every answer must be equal.

use std::sync::Arc;

use proptest::prelude::*;
use stock::EmbeddedLedger;
use stock::ledger::{GrantRequest, Mine};

use super::*;

const IDS: u64 = 24;
const USERS: u64 = 6;

/// Id, quantity, and whether there is metadata.
type Order = (u64, u32, bool);

#[derive(Debug, Clone)]
enum Call {
    Reserve { late: bool, epoch: u64, owner: u64, orders: Vec<Order> },
    Confirm(Vec<Order>),
    Release(Vec<Order>),
    Restore { epoch: u64, owner: u64, orders: Vec<Order> },
    Push { version: u64, total: u32, limit: u32, passes: u32, paused: bool, window: u8 },
    Install { version: u64, total: u32, epoch: u64 },
    Open { epoch: u64 },
    Grant { id: u64, expired: bool },
    Pending { owner: Option<u64>, after: Option<u64>, limit: usize },
    Forget,
}

fn orders(most: usize) -> impl Strategy<Value = Vec<Order>> {
    prop::collection::vec((0..IDS, 1u32..4, prop::bool::weighted(0.2)), 0..most)
}

fn call() -> impl Strategy<Value = Call> {
    let epoch = || prop_oneof![8 => Just(0u64), 1 => Just(1u64)];
    prop_oneof![
        // One, two or many: each script's turn comes.
        10 => (prop::bool::weighted(0.05), epoch(), 1u64..3, orders(8))
            .prop_map(|(late, epoch, owner, orders)| Call::Reserve { late, epoch, owner, orders }),
        4 => (prop::bool::weighted(0.05), epoch(), 1u64..3, orders(2))
            .prop_map(|(late, epoch, owner, orders)| Call::Reserve { late, epoch, owner, orders }),
        4 => orders(6).prop_map(Call::Confirm),
        4 => orders(6).prop_map(Call::Release),
        2 => (epoch(), 1u64..3, orders(6)).prop_map(|(epoch, owner, orders)| Call::Restore { epoch, owner, orders }),
        2 => (0u64..8, 1u32..16, 1u32..5, 0u32..3, prop::bool::weighted(0.2), 0u8..12)
            .prop_map(|(version, total, limit, passes, paused, window)| Call::Push {
                version, total, limit, passes, paused, window
            }),
        1 => (0u64..8, 1u32..16, 0u64..3).prop_map(|(version, total, epoch)| Call::Install { version, total, epoch }),
        2 => epoch().prop_map(|epoch| Call::Open { epoch }),
        4 => (0..IDS, prop::bool::weighted(0.2)).prop_map(|(id, expired)| Call::Grant { id, expired }),
        2 => (prop::option::of(1u64..4), prop::option::of(0..IDS), 0usize..8)
            .prop_map(|(owner, after, limit)| Call::Pending { owner, after, limit }),
        1 => Just(Call::Forget),
    ]
}

/// The clocks differ by little, and nothing here depends on it but the time of reserving.
fn without_time(reservation: &Reservation) -> Reservation {
    Reservation { reserved_at_ms: 0, ..reservation.clone() }
}

struct Pair {
    sale: Sale,
    embedded: Ledger,
    epoch: u64,
    began_ms: u64,
}

impl Pair {
    async fn new(redis: &Ledger) -> Self {
        let sale = Sale::open(redis, 12).await;
        let embedded = Ledger::Embedded(EmbeddedLedger::new(Arc::new(now_ms)));
        embedded.install(&sale.version, 1).await.unwrap();
        embedded.open(sale.id(), 1).await.unwrap();
        Self { sale, embedded, epoch: 1, began_ms: now_ms() }
    }

    fn quantities(&self, orders: &[Order]) -> Vec<Settlement> {
        let settlement = |&(id, quantity, _): &Order| Settlement {
            order_id: self.sale.order(id),
            user: user(id % USERS),
            quantity,
        };
        orders.iter().map(settlement).collect()
    }

    fn metadata(has: bool) -> Option<Box<str>> {
        has.then(|| "gift: \0 \u{1F381}".into())
    }

    /// What one ledger answers, as text.
    async fn answer(&self, ledger: &Ledger, call: &Call) -> String {
        let sale = self.sale.id();
        let epoch_of = |offset: u64| self.epoch + offset;
        match call {
            Call::Reserve { late, epoch, owner, orders } => {
                let request = |&(id, quantity, metadata): &Order| ReserveRequest {
                    order_id: self.sale.order(id),
                    user: user(id % USERS),
                    quantity,
                    metadata: Self::metadata(metadata),
                };
                let batch = ReserveBatch {
                    sale: sale.clone(),
                    epoch: epoch_of(*epoch),
                    deadline_ms: if *late { self.began_ms - HOUR_MS } else { now_ms() + 20_000 },
                    owner: Owner(*owner),
                    terms_version: 1,
                    requests: orders.iter().map(request).collect(),
                };
                let answer = ledger.reserve(&batch).await.map(|mut answer| {
                    for outcome in &mut answer.outcomes {
                        if let ReserveOutcome::Pending { reservation, .. } = outcome {
                            *reservation = without_time(reservation);
                        }
                    }
                    (answer.outcomes, answer.flag)
                });
                format!("{answer:?}")
            }
            Call::Confirm(orders) => format!("{:?}", ledger.confirm(sale, &self.quantities(orders)).await),
            Call::Release(orders) => format!("{:?}", ledger.release(sale, &self.quantities(orders)).await),
            Call::Restore { epoch, owner, orders } => {
                let reservation = |&(id, quantity, metadata): &Order| Reservation {
                    order_id: self.sale.order(id),
                    sale: sale.clone(),
                    user: user(id % USERS),
                    quantity,
                    metadata: Self::metadata(metadata),
                    reserved_at_ms: 1_700_000_000_000 + id,
                    sale_version: None,
                };
                let reservations: Vec<_> = orders.iter().map(reservation).collect();
                format!("{:?}", ledger.restore(sale, epoch_of(*epoch), Owner(*owner), &reservations).await)
            }
            &Call::Push { version, total, limit, passes, paused, window } => {
                let (starts_at_ms, ends_at_ms) = match window {
                    0 => (self.began_ms + HOUR_MS, self.began_ms + 2 * HOUR_MS),
                    1 => (0, self.began_ms - 1),
                    _ => (0, u64::MAX),
                };
                let version = SaleVersion {
                    sale: sale.clone(),
                    version,
                    total,
                    starts_at_ms,
                    ends_at_ms,
                    per_user_limit: limit,
                    passes_per_unit: passes,
                    paused,
                    terms_version: if version == 7 { 7 } else { 1 },
                };
                format!("{:?}", ledger.push_sale(&version).await)
            }
            &Call::Install { version, total, epoch } => {
                let version = SaleVersion { version, total, ..self.sale.version.clone() };
                format!("{:?}", ledger.install(&version, (self.epoch + epoch).saturating_sub(1)).await)
            }
            &Call::Open { epoch } => format!("{:?}", ledger.open(sale, epoch_of(epoch)).await),
            &Call::Grant { id, expired } => {
                let expires_at_ms = if expired { self.began_ms - 1 } else { self.began_ms + HOUR_MS + id };
                let (user, order_id) = (user(id % USERS), self.sale.order(id));
                // Some count no longer from the beginning, and are their user's only pass all the same.
                let counts_until_ms = if id % 3 == 0 { self.began_ms - 1 } else { expires_at_ms };
                let request = GrantRequest { user, order_id, expires_at_ms, counts_until_ms };
                format!("{:?}", ledger.grant(sale, self.epoch, &request).await)
            }
            &Call::Pending { owner, after, limit } => {
                let after = after.map(|after| self.sale.order(after));
                let page = ledger.pending(sale, owner.map(Owner), after, limit).await;
                let page = page.map(|page| {
                    page.into_iter().map(|(owner, r)| (owner, without_time(&r))).collect::<Vec<_>>()
                });
                format!("{page:?}")
            }
            Call::Forget => format!("{:?}", ledger.forget(sale).await),
        }
    }

    /// Everything that can be asked without changing anything.
    async fn picture(&self, ledger: &Ledger) -> String {
        let ids: Vec<_> = (0..IDS).map(|id| self.sale.order(id)).collect();
        let states = ledger.states(self.sale.id(), &ids).await;
        let mut mine = Vec::new();
        for n in 0..USERS {
            let held = ledger.mine(self.sale.id(), &user(n)).await;
            mine.push(held.map(|held| {
                let bare =
                    |mine: Mine| (mine.order_id, mine.pending.map(|(owner, r)| (owner, without_time(&r))));
                held.into_iter().map(bare).collect::<Vec<_>>()
            }));
        }
        format!("{:?} {states:?} {mine:?}", ledger.snapshot(self.sale.id()).await)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_ledgers_answer_alike(calls in prop::collection::vec(call(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let redis = connect_patiently(&SHARED.url()).await;
            let mut pair = Pair::new(&redis).await;
            for call in &calls {
                let (expected, found) =
                    (pair.answer(&pair.embedded, call).await, pair.answer(&redis, call).await);
                prop_assert_eq!(expected, found, "{:?}", call);
                let (expected, found) = (pair.picture(&pair.embedded).await, pair.picture(&redis).await);
                prop_assert_eq!(expected, found, "after {:?}", call);
                if let Ok(snapshot) = pair.sale.snapshot().await {
                    pair.epoch = snapshot.epoch;
                }
            }
            let audit = stock::ledger::redis::RedisAudit::connect(&config(&SHARED.url())).await.unwrap();
            if let Some(audit) = audit.sale(pair.sale.id()).await.unwrap() {
                prop_assert_eq!(audit.conserved(), Some(true), "{:?}", audit);
            }
            audit.close().await;
            Ok(())
        })?;
    }
}

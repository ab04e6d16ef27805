//! The embedded ledger against a naive reference that recounts everything from scratch at every call.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use stock::ledger::{IdState, Ledger, ReserveBatch, ReserveOutcome, ReserveRequest, Settlement};
use stock::{EmbeddedLedger, FlagState, LedgerError, OrderId, Owner, SaleId, SaleVersion, UserId};

const IDS: u64 = 12;
const USERS: u64 = 4;

/// One call, with ids and users as small numbers so that they meet often.
#[derive(Debug, Clone)]
enum Call {
    Reserve { late: bool, requests: Vec<(u64, u64, u32)> },
    Confirm(Vec<(u64, u64, u32)>),
    Release(Vec<(u64, u64, u32)>),
    Push { version: u64, total: u32, limit: u32, paused: bool },
}

fn attempts(most: usize) -> impl Strategy<Value = Vec<(u64, u64, u32)>> {
    // An id belongs to one user, as a pass does.
    prop::collection::vec((0..IDS, 1u32..4).prop_map(|(id, quantity)| (id, id % USERS, quantity)), 0..most)
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => (prop::bool::weighted(0.1), attempts(5)).prop_map(|(late, requests)| Call::Reserve { late, requests }),
        3 => attempts(4).prop_map(Call::Confirm),
        3 => attempts(4).prop_map(Call::Release),
        1 => (0u64..6, 1u32..12, 1u32..5, prop::bool::weighted(0.2))
            .prop_map(|(version, total, limit, paused)| Call::Push { version, total, limit, paused }),
    ]
}

/// What the contract says, without any running sum.
struct Reference {
    version: u64,
    total: u32,
    limit: u32,
    paused: bool,
    ids: BTreeMap<u64, (IdState, u64, u32)>,
    flag_counter: u64,
}

impl Reference {
    fn units(&self, of: IdState) -> u64 {
        self.ids.values().filter(|(state, ..)| *state == of).map(|(.., quantity)| u64::from(*quantity)).sum()
    }

    fn remaining(&self) -> i64 {
        i64::from(self.total) - (self.units(IdState::Pending) + self.units(IdState::Confirmed)) as i64
    }

    fn held_by(&self, user: u64) -> u64 {
        let holds = |state| matches!(state, IdState::Pending | IdState::Confirmed);
        self.ids.values().filter(|(s, u, _)| holds(*s) && *u == user).map(|(.., q)| u64::from(*q)).sum()
    }

    fn reserve(&mut self, (id, user, quantity): (u64, u64, u32)) -> &'static str {
        match self.ids.get(&id).map(|(state, ..)| *state) {
            Some(IdState::Pending) => return "pending again",
            Some(IdState::Confirmed) => return "confirmed",
            Some(IdState::Released) => return "pass used",
            _ => {}
        }
        if self.paused {
            "paused"
        } else if self.held_by(user) + u64::from(quantity) > u64::from(self.limit) {
            "limit reached"
        } else if self.remaining() <= 0 {
            "sold out"
        } else if self.remaining() < i64::from(quantity) {
            "not enough"
        } else {
            self.ids.insert(id, (IdState::Pending, user, quantity));
            "pending"
        }
    }

    fn settle(&mut self, (id, user, quantity): (u64, u64, u32), to: IdState) {
        let from = self.ids.get(&id).map_or(IdState::Absent, |(state, ..)| *state);
        if from < to {
            self.ids.insert(id, (to, user, quantity));
        }
    }
}

fn name(outcome: &ReserveOutcome) -> &'static str {
    match outcome {
        ReserveOutcome::Pending { first: true, .. } => "pending",
        ReserveOutcome::Pending { first: false, .. } => "pending again",
        ReserveOutcome::Confirmed => "confirmed",
        ReserveOutcome::PassUsed => "pass used",
        ReserveOutcome::TermsDiffer => "terms differ",
        ReserveOutcome::Paused => "paused",
        ReserveOutcome::NotStarted => "not started",
        ReserveOutcome::Ended => "ended",
        ReserveOutcome::LimitReached { .. } => "limit reached",
        ReserveOutcome::NotEnough { .. } => "not enough",
        ReserveOutcome::SoldOut => "sold out",
    }
}

/// The ledger under test, one sale, one epoch.
struct Subject {
    ledger: Ledger,
    sale: SaleId,
    now_ms: Arc<AtomicU64>,
    runtime: tokio::runtime::Runtime,
}

impl Subject {
    fn open(total: u32, limit: u32) -> Self {
        let now_ms = Arc::new(AtomicU64::new(1_000));
        let clock = now_ms.clone();
        let ledger = Ledger::Embedded(EmbeddedLedger::new(Arc::new(move || clock.load(Ordering::Relaxed))));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sale: SaleId = "demo".parse().unwrap();
        let subject = Self { ledger, sale, now_ms, runtime };
        let version = subject.version(1, total, limit, false);
        subject.runtime.block_on(subject.ledger.install(&version, 1)).unwrap();
        subject.runtime.block_on(subject.ledger.open(&subject.sale, 1)).unwrap();
        subject
    }

    fn version(&self, version: u64, total: u32, per_user_limit: u32, paused: bool) -> SaleVersion {
        let sale = self.sale.clone();
        let (starts_at_ms, ends_at_ms) = (0, u64::MAX);
        SaleVersion {
            sale,
            version,
            total,
            starts_at_ms,
            ends_at_ms,
            per_user_limit,
            passes_per_unit: 0,
            paused,
            terms_version: 1,
        }
    }

    fn order(&self, id: u64) -> OrderId {
        OrderId::new(1, &self.sale, id)
    }

    fn user(user: u64) -> UserId {
        format!("user-{user}").parse().unwrap()
    }

    fn settlements(&self, of: &[(u64, u64, u32)]) -> Vec<Settlement> {
        of.iter()
            .map(|&(id, user, quantity)| Settlement {
                order_id: self.order(id),
                user: Self::user(user),
                quantity,
            })
            .collect()
    }

    fn reserve(&self, late: bool, requests: &[(u64, u64, u32)]) -> Result<Vec<ReserveOutcome>, LedgerError> {
        let now_ms = self.now_ms.fetch_add(1, Ordering::Relaxed) + 1;
        let requests = requests
            .iter()
            .map(|&(id, user, quantity)| ReserveRequest {
                order_id: self.order(id),
                user: Self::user(user),
                quantity,
                metadata: None,
            })
            .collect();
        let deadline_ms = if late { now_ms - 1 } else { now_ms };
        let batch = ReserveBatch {
            sale: self.sale.clone(),
            epoch: 1,
            deadline_ms,
            terms_version: 1,
            owner: Owner(1),
            requests,
        };
        Ok(self.runtime.block_on(self.ledger.reserve(&batch))?.outcomes)
    }

    fn confirm(&self, settled: &[(u64, u64, u32)]) -> FlagState {
        self.runtime.block_on(self.ledger.confirm(&self.sale, &self.settlements(settled))).unwrap()
    }

    fn release(&self, settled: &[(u64, u64, u32)]) -> FlagState {
        self.runtime.block_on(self.ledger.release(&self.sale, &self.settlements(settled))).unwrap()
    }

    fn states(&self) -> Vec<IdState> {
        let ids: Vec<_> = (0..IDS).map(|id| self.order(id)).collect();
        self.runtime.block_on(self.ledger.states(&self.sale, &ids)).unwrap()
    }

    /// `(total, remaining, pending, confirmed, flag)`.
    fn figures(&self) -> (u32, i64, u64, u64, FlagState) {
        let snapshot = self.runtime.block_on(self.ledger.snapshot(&self.sale)).unwrap();
        (snapshot.total, snapshot.remaining, snapshot.pending, snapshot.confirmed, snapshot.flag)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_call_does_what_the_reference_does(
        total in 1u32..12,
        limit in 1u32..5,
        calls in prop::collection::vec(call(), 1..40),
    ) {
        let subject = Subject::open(total, limit);
        let mut reference =
            Reference { version: 1, total, limit, paused: false, ids: BTreeMap::new(), flag_counter: 0 };
        for call in calls {
            let before = subject.states();
            let sold_out = reference.remaining() <= 0;
            match &call {
                Call::Reserve { late: true, requests } => {
                    prop_assert_eq!(subject.reserve(true, requests).unwrap_err(), LedgerError::DeadlinePassed);
                }
                Call::Reserve { late: false, requests } => {
                    let outcomes = subject.reserve(false, requests).unwrap();
                    let expected: Vec<_> = requests.iter().map(|r| reference.reserve(*r)).collect();
                    prop_assert_eq!(outcomes.iter().map(name).collect::<Vec<_>>(), expected);
                }
                Call::Confirm(settled) => {
                    subject.confirm(settled);
                    settled.iter().for_each(|s| reference.settle(*s, IdState::Confirmed));
                }
                Call::Release(settled) => {
                    subject.release(settled);
                    settled.iter().for_each(|s| reference.settle(*s, IdState::Released));
                }
                &Call::Push { version, total, limit, paused } => {
                    let pushed = subject.version(version, total, limit, paused);
                    subject.runtime.block_on(subject.ledger.push_sale(&pushed)).unwrap();
                    if version > reference.version {
                        (reference.version, reference.total) = (version, total);
                        (reference.limit, reference.paused) = (limit, paused);
                    }
                }
            }
            if (reference.remaining() <= 0) != sold_out {
                reference.flag_counter += 1;
            }
            let (total, remaining, pending, confirmed, flag) = subject.figures();
            prop_assert_eq!(total, reference.total);
            prop_assert_eq!(remaining, reference.remaining());
            prop_assert_eq!(pending, reference.units(IdState::Pending));
            prop_assert_eq!(confirmed, reference.units(IdState::Confirmed));
            prop_assert_eq!(i64::from(total), remaining + pending as i64 + confirmed as i64);
            prop_assert_eq!(flag.sold_out, remaining <= 0);
            prop_assert_eq!(flag.version.counter, reference.flag_counter);
            for (before, after) in before.iter().zip(subject.states()) {
                prop_assert!(*before <= after, "an id went back from {:?} to {:?}", before, after);
            }
        }
    }

    #[test]
    fn a_repeated_call_changes_nothing(calls in prop::collection::vec(call(), 1..20)) {
        let once = Subject::open(8, 3);
        let twice = Subject::open(8, 3);
        for call in calls {
            for subject in [&once, &twice, &twice] {
                match &call {
                    Call::Reserve { requests, .. } => drop(subject.reserve(false, requests).unwrap()),
                    Call::Confirm(settled) => drop(subject.confirm(settled)),
                    Call::Release(settled) => drop(subject.release(settled)),
                    &Call::Push { version, total, limit, paused } => {
                        let pushed = subject.version(version, total, limit, paused);
                        subject.runtime.block_on(subject.ledger.push_sale(&pushed)).unwrap();
                    }
                }
            }
            // A repeated reserve may win what was refused only if something was given back in between: nothing was.
            prop_assert_eq!(once.figures(), twice.figures());
            prop_assert_eq!(once.states(), twice.states());
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_matter(
        orders in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 1u32..4), IDS as usize),
        shuffle in Just((0..IDS * 3).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        // Stock and limit for everybody, so that no reservation is refused.
        let in_order = Subject::open(1_000, 1_000);
        let shuffled = Subject::open(1_000, 1_000);
        let arrive = |subject: &Subject, step: u64| {
            let (id, (reserved, confirmed, released, quantity)) = (step / 3, orders[(step / 3) as usize]);
            let order = [(id, id % USERS, quantity)];
            match step % 3 {
                0 if reserved => drop(subject.reserve(false, &order).unwrap()),
                1 if confirmed => drop(subject.confirm(&order)),
                2 if released => drop(subject.release(&order)),
                _ => {}
            }
        };
        (0..IDS * 3).for_each(|step| arrive(&in_order, step));
        shuffle.iter().for_each(|step| arrive(&shuffled, *step));
        prop_assert_eq!(in_order.states(), shuffled.states());
        let units = |subject: &Subject| {
            let (_, remaining, pending, confirmed, _) = subject.figures();
            (remaining, pending, confirmed)
        };
        prop_assert_eq!(units(&in_order), units(&shuffled));
    }
}

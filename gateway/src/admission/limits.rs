//! Requests a second of one user and of one address, in memory that does not grow with the number of keys.
//!
//! governor decides (GCRA on a monotonic clock); the states live in a table of fixed size. Under rotating keys the state that
//! is closest to being forgotten anyway makes room: the limiter then errs on the lenient side and never grows.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use stock::UserId;
use tokio::time::Instant;

use crate::config::LimitsConfig;
use crate::http::client::Holder;
use queue::Random;

/// Keys that share a lock and compete for places.
const WAYS: usize = 8;
/// Sets of a table: 131,072 keys in 2 MiB.
const SETS: usize = 1 << 14;

/// The limits of `[limits]`, for users and for addresses.
pub struct Limits {
    users: Option<Table>,
    addresses: Option<Table>,
    /// Makes it impossible to aim at somebody's place in the table.
    seed: u64,
}

struct Table {
    limiter: RateLimiter<u64, BoundedStore, MonotonicClock, NoOpMiddleware<Nanos>>,
    clock: MonotonicClock,
}

/// Too fast: worth another try after this long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// Until the next one would pass.
    pub retry_after: Duration,
}

impl Limits {
    /// Tables for the limits that are on; none are allocated for those that are off.
    #[must_use]
    pub fn new(config: &LimitsConfig, random: &Random) -> Self {
        let table = |rps: u32| NonZeroU32::new(rps).map(Table::new);
        Self { users: table(config.per_user_rps), addresses: table(config.per_address_rps), seed: random() }
    }

    /// Counts one request of `user`.
    ///
    /// # Errors
    /// The user has been too fast; the request is not counted.
    pub fn check_user(&self, user: &UserId) -> Result<(), TooFast> {
        match &self.users {
            Some(table) => table.check(self.key(user.as_str())),
            None => Ok(()),
        }
    }

    /// Counts one request from `address`; all of an IPv6 /64 is one.
    ///
    /// # Errors
    /// The address has been too fast; the request is not counted.
    pub fn check_address(&self, address: IpAddr) -> Result<(), TooFast> {
        match &self.addresses {
            Some(table) => table.check(self.key(Holder::of(address))),
            None => Ok(()),
        }
    }

    fn key(&self, name: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        name.hash(&mut hasher);
        hasher.finish()
    }
}

impl Table {
    fn new(rps: NonZeroU32) -> Self {
        let clock = MonotonicClock(Instant::now());
        Self { limiter: RateLimiter::new(Quota::per_second(rps), BoundedStore::new(SETS), clock), clock }
    }

    fn check(&self, key: u64) -> Result<(), TooFast> {
        self.limiter
            .check_key(&key)
            .map_err(|until| TooFast { retry_after: until.wait_time_from(self.clock.now()) })
    }
}

/// Nanoseconds since the table was made.
#[derive(Debug, Clone, Copy)]
struct MonotonicClock(Instant);

impl Clock for MonotonicClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

/// Rate-limiting states by key, set-associative.
struct BoundedStore {
    sets: Box<[Mutex<[Way; WAYS]>]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Way {
    key: u64,
    /// GCRA's theoretical arrival time; `None` is a free place.
    arrival: Option<Nanos>,
}

impl BoundedStore {
    fn new(sets: usize) -> Self {
        Self { sets: (0..sets).map(|_| Mutex::new([Way::default(); WAYS])).collect() }
    }
}

impl StateStore for BoundedStore {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut set = self.sets[*key as usize % self.sets.len()].lock();
        let held = set.iter().position(|way| way.arrival.is_some() && way.key == *key);
        let (outcome, arrival) = decide(held.and_then(|at| set[at].arrival))?;
        let place = held.unwrap_or_else(|| {
            let earliest = |at: &usize| set[*at].arrival.map_or(0, Nanos::as_u64);
            (0..WAYS).min_by_key(earliest).unwrap_or(0)
        });
        set[place] = Way { key: *key, arrival: Some(arrival) };
        Ok(outcome)
    }
}

/// governor asks for `Reference` on the clock's instants; this pins that [`Nanos`] is one.
const _: fn() = || {
    fn is_reference<R: Reference>() {}
    is_reference::<Nanos>();
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn limits(per_user_rps: u32, per_address_rps: u32) -> Limits {
        let random: Random = Arc::new(|| 42);
        Limits::new(&LimitsConfig { per_user_rps, per_address_rps, in_flight_max: 1 }, &random)
    }

    fn user(name: &str) -> UserId {
        name.parse().expect("a user")
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_gets_a_burst_and_then_the_rate() {
        let limits = limits(5, 0);
        for _ in 0..5 {
            assert_eq!(limits.check_user(&user("a")), Ok(()));
        }
        let refused = limits.check_user(&user("a")).expect_err("too fast");
        assert!(refused.retry_after <= Duration::from_millis(200), "{refused:?}");
        assert_eq!(limits.check_user(&user("b")), Ok(()), "others are not held up");
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(limits.check_user(&user("a")), Ok(()));
        assert!(limits.check_user(&user("a")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_is_one_address() {
        let limits = limits(0, 1);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(limits.check_address(address("2001:db8:0:1::1")).is_ok());
        assert!(limits.check_address(address("2001:db8:0:1::2")).is_err());
        assert!(limits.check_address(address("2001:db8:0:2::1")).is_ok());
        assert!(limits.check_address(address("192.0.2.1")).is_ok());
        assert!(limits.check_address(address("::ffff:192.0.2.1")).is_err());
        for _ in 0..100 {
            assert!(limits.check_user(&user("a")).is_ok(), "off");
        }
    }

    #[test]
    fn rotating_keys_do_not_grow_the_table() {
        let limits = limits(1, 0);
        for n in 0..(SETS * WAYS * 2) {
            let _ = limits.check_user(&user(&n.to_string()));
        }
        let table = limits.users.as_ref().expect("on");
        assert!(table.check(0).is_ok(), "a full table still serves");
    }
}

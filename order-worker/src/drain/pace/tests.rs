//! The pace in paused time: averages, windows, shares, and a random search for a second that sees too much.

use super::*;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError};

fn config(orders_per_second_max: u32, batch_size_max: u32) -> DrainConfig {
    DrainConfig { orders_per_second_max, batch_size_max, adaptive: true }
}

type Batches = Vec<(Duration, usize)>;

/// Drains a standing backlog until `end`; answers with (when, how many) of each batch.
async fn drain(pace: &Arc<Pace>, begun: Instant, end: Duration, settle: impl Fn(u64) -> Duration) -> Batches {
    let _place = pace.enter(Owner(1));
    drain_at(pace, begun, end, settle).await
}

/// The same at a place that there is.
async fn drain_at(
    pace: &Arc<Pace>,
    begun: Instant,
    end: Duration,
    settle: impl Fn(u64) -> Duration,
) -> Batches {
    let mut batches = Vec::new();
    while begun.elapsed() < end {
        let orders = pace.batch_max();
        pace.take(orders).await;
        let took = settle(batches.len() as u64);
        tokio::time::sleep(took).await;
        pace.committed(took, orders);
        batches.push((begun.elapsed(), orders));
    }
    batches
}

async fn drain_alone(pace: &Arc<Pace>, settle: impl Fn(u64) -> Duration) -> Batches {
    drain(pace, Instant::now(), Duration::from_secs(20), settle).await
}

fn most_in_a_second(batches: &[(Duration, usize)]) -> usize {
    let window = |from: usize| {
        let end = batches[from].0 + Duration::from_secs(1);
        batches[from..].iter().take_while(|(at, _)| *at < end).map(|(_, orders)| orders).sum()
    };
    (0..batches.len()).map(window).max().unwrap_or(0)
}

fn per_second(batches: &[(Duration, usize)]) -> f64 {
    let orders: usize = batches.iter().map(|(_, orders)| orders).sum();
    orders as f64 / batches[batches.len() - 1].0.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn the_average_is_exact_and_no_second_exceeds_a_tenth_more() {
    for (limit, batch_size_max) in [
        (1, 256),
        (7, 256),
        (20, 1),
        (100, 256),
        (333, 256),
        (1_000, 10),
        (2_000, 256),
        (7_777, 256),
        (50_000, 512),
    ] {
        for settle in [|_| Duration::ZERO, |n| Duration::from_micros(n * 7_919 % 9_000)] {
            let pace = Arc::new(Pace::new(&config(limit, batch_size_max)));
            // Where a jittering transaction takes longer than the pace leaves, the database is the limit.
            let whole = pace.state.lock().hard.batch;
            let jitter_binds = u64::from(whole) * 1_000 / u64::from(limit) < 9;
            let batches = drain_alone(&pace, settle).await;
            let rate = per_second(&batches);
            let off = rate / f64::from(limit) - 1.0;
            let burst = f64::from(whole + 2) / (20.0 * f64::from(limit));
            assert!(off < 0.02 + burst, "{limit}/{batch_size_max}: {rate}");
            assert!(off > -0.02 || jitter_binds, "{limit}/{batch_size_max}: {rate}");
            let most = most_in_a_second(&batches);
            let allowed = limit as usize + (limit as usize / 10).max(1);
            assert!(most <= allowed, "{limit}/{batch_size_max}: {most} in one second");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn above_a_thousand_a_second_it_is_exact() {
    for limit in [1_001, 1_999, 3_333, 12_345, 77_777] {
        let pace = Arc::new(Pace::new(&config(limit, 512)));
        let batches = drain_alone(&pace, |_| Duration::from_micros(700)).await;
        // Warm, and without the full bucket of the beginning.
        let steady: Vec<_> = batches.into_iter().filter(|(at, _)| at.as_secs() >= 2).collect();
        let orders: usize = steady[1..].iter().map(|(_, orders)| orders).sum();
        let rate = orders as f64 / (steady[steady.len() - 1].0 - steady[0].0).as_secs_f64();
        assert!((rate / f64::from(limit) - 1.0).abs() < 0.005, "{rate} at a limit of {limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_not_caught_up_with_a_flood() {
    let pace = Arc::new(Pace::new(&config(2_000, 256)));
    let batches = drain_alone(&pace, |n| Duration::from_millis(if n == 50 { 5_000 } else { 0 })).await;
    let most = most_in_a_second(&batches);
    assert!(most <= 2_200, "{most} in one second");
}

#[tokio::test(start_paused = true)]
async fn a_slow_database_is_spared_and_a_quick_one_used() {
    let pace = Arc::new(Pace::new(&config(2_000, 256)));
    // 5 ms a batch is how it is; from the 10th second on 300 ms; from the 40th on 5 ms again.
    let begun = Instant::now();
    let settle = |_| {
        let seconds = begun.elapsed().as_secs();
        Duration::from_millis(if (10..40).contains(&seconds) { 300 } else { 5 })
    };
    let batches = drain(&pace, begun, Duration::from_secs(60), settle).await;
    let rate = |from: u64, to: u64| {
        let orders: usize = batches
            .iter()
            .filter(|(at, _)| (from..to).contains(&at.as_secs()))
            .map(|(_, orders)| orders)
            .sum();
        orders as f64 / (to - from) as f64
    };
    assert!((rate(2, 10) / 2_000.0 - 1.0).abs() < 0.02, "{}", rate(2, 10));
    assert!(rate(25, 40) < 300.0, "{}", rate(25, 40));
    assert!((rate(50, 60) / 2_000.0 - 1.0).abs() < 0.02, "{}", rate(50, 60));
    let fixed = Arc::new(Pace::new(&DrainConfig { adaptive: false, ..config(2_000, 256) }));
    fixed.committed(Duration::from_secs(9), 100);
    fixed.failed();
    assert_eq!(fixed.rate(), 2_000);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_with_a_gentle_beginning() {
    let pace = Arc::new(Pace::new(&config(2_000, 256)));
    drain_alone(&pace, |_| Duration::from_millis(5)).await;
    assert_eq!(pace.rate(), 2_000);
    for _ in 0..10 {
        pace.failed();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(pace.rate(), 250);
    let batches = drain_alone(&pace, |_| Duration::from_millis(5)).await;
    let first: usize = batches.iter().filter(|(at, _)| at.as_millis() < 200).map(|(_, orders)| orders).sum();
    assert!(first < 200, "{first} in the first 200 ms, at a limit of 400");
    assert_eq!(pace.rate(), 2_000);
}

#[tokio::test(start_paused = true)]
async fn a_share_holds_at_once_and_ends_by_itself() {
    let pace = Arc::new(Pace::new(&DrainConfig { adaptive: false, ..config(1_000, 256) }));
    let now = Instant::now();
    pace.share();
    assert_eq!((pace.share_ppm(), pace.rate()), (0, 0));
    let place = pace.enter(Owner(1));
    pace.set_share(Owner(1), 250_000, now + Duration::from_secs(10));
    assert_eq!((pace.share_ppm(), pace.rate()), (250_000, 250));
    let batches = {
        let draining = drain_at(&pace, Instant::now(), Duration::from_secs(20), |_| Duration::from_millis(1));
        tokio::pin!(draining);
        // It never ends: after 10 s nothing goes any more.
        assert!(tokio::time::timeout(Duration::from_secs(30), &mut draining).await.is_err());
        assert_eq!((pace.share_ppm(), pace.rate()), (0, 0));
        pace.set_share(Owner(1), 500_000, Instant::now() + Duration::from_secs(60));
        draining.await
    };
    let orders: usize = batches.iter().filter(|(at, _)| at.as_secs() < 20).map(|(_, orders)| orders).sum();
    assert!((2_400..=2_520).contains(&orders), "{orders} in 10 s at 250 a second");
    assert!(most_in_a_second(&batches) <= 550);
    drop(place);
    assert_eq!((pace.share_ppm(), pace.rate()), (0, 0));
    pace.set_share(Owner(1), 500_000, Instant::now() + Duration::from_secs(60));
    assert_eq!(pace.share_ppm(), 0, "of a log that has no drain any more");
}

#[tokio::test(start_paused = true)]
async fn each_log_brings_its_share() {
    let pace = Arc::new(Pace::new(&config(1_000, 256)));
    pace.share();
    let until = Instant::now() + Duration::from_secs(5);
    let (_one, other) = (pace.enter(Owner(1)), pace.enter(Owner(2)));
    pace.set_share(Owner(1), 250_000, until);
    pace.set_share(Owner(2), 300_000, until);
    assert_eq!((pace.share_ppm(), pace.share_ppm_of(Owner(2))), (550_000, 300_000));
    drop(other);
    assert_eq!((pace.share_ppm(), pace.share_ppm_of(Owner(2))), (250_000, 0));
    let _again = pace.enter(Owner(2));
    assert_eq!((pace.share_ppm(), pace.share_ppm_of(Owner(2))), (250_000, 0), "it comes back with nothing");
}

#[test]
fn a_log_that_is_not_drained_here_has_no_reach() {
    let pace = Arc::new(Pace::new(&config(1_000, 256)));
    assert_eq!(pace.reach(Owner(1)), None);
    let drain = pace.enter(Owner(1));
    assert_eq!(pace.reach(Owner(1)), Some(Reach::Through { reserved_at_ms: 0 }));
    drain.has_settled_through(7);
    assert_eq!(pace.reach(Owner(1)), Some(Reach::Through { reserved_at_ms: 7 }));
    drain.has_settled_everything();
    assert_eq!(pace.reach(Owner(1)), Some(Reach::Everything));
    drop(drain);
    assert_eq!(pace.reach(Owner(1)), None);
}

/// What one drain does in a random run.
#[derive(Debug, Clone)]
struct Habits {
    /// Of its transactions, in turn, µs.
    settle_us: Vec<u32>,
    /// One in so many transactions fails first; 0: none.
    fails_each: u64,
}

fn habits() -> impl Strategy<Value = Habits> {
    let settle = prop_oneof![8 => 0..5_000u32, 2 => 5_000..80_000u32, 1 => 80_000..1_500_000u32];
    (prop::collection::vec(settle, 1..12), 0..20u64)
        .prop_map(|(settle_us, fails_each)| Habits { settle_us, fails_each })
}

async fn habitual(pace: &Arc<Pace>, begun: Instant, end: Duration, habits: &Habits) -> Batches {
    let mut batches = Vec::new();
    while begun.elapsed() < end {
        let orders = pace.batch_max();
        pace.take(orders).await;
        let n = batches.len() as u64;
        let took = Duration::from_micros(u64::from(habits.settle_us[n as usize % habits.settle_us.len()]));
        if habits.fails_each > 0 && n.is_multiple_of(habits.fails_each) {
            pace.failed();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(took).await;
        pace.committed(took, orders);
        batches.push((begun.elapsed(), orders));
    }
    batches
}

proptest! {
    #![proptest_config(Config { cases: 48, ..Config::default() })]

    /// Whatever the database does, however many drains there are and whatever shares come and go: no second sees more than the
    /// limit and a tenth of it, or one order a drain where a tenth is less than that.
    #[test]
    fn no_second_exceeds_the_limit_and_a_tenth(
        limit in prop_oneof![1..50u32, 50..5_000u32, 5_000..100_000u32],
        batch_size_max in 1..=512u32,
        adaptive: bool,
        drains in prop::collection::vec(habits(), 1..4),
        shares in prop::collection::vec((0..=WHOLE_PPM, 1..3_000u64), 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let checked: Result<(), TestCaseError> = runtime.block_on(async {
            let pace = Arc::new(Pace::new(&DrainConfig { orders_per_second_max: limit, batch_size_max, adaptive }));
            let begun = Instant::now();
            let end = Duration::from_secs(8);
            let _places: Vec<_> = (0..drains.len() as u64).map(|n| pace.enter(Owner(n))).collect();
            let sharing = async {
                if !shares.is_empty() {
                    pace.share();
                }
                for (ppm, hold_ms) in shares {
                    pace.set_share(Owner(0), ppm, Instant::now() + Duration::from_millis(hold_ms + 100));
                    tokio::time::sleep(Duration::from_millis(hold_ms)).await;
                }
                pace.set_share(Owner(0), WHOLE_PPM, begun + Duration::from_secs(3_600));
                std::future::pending::<()>().await;
            };
            let draining = async {
                let mut all = Batches::new();
                match drains.as_slice() {
                    [one] => all.extend(habitual(&pace, begun, end, one).await),
                    [one, two] => {
                        let (a, b) = tokio::join!(habitual(&pace, begun, end, one), habitual(&pace, begun, end, two));
                        all.extend(a.into_iter().chain(b));
                    }
                    [one, two, three, ..] => {
                        let (a, b, c) = tokio::join!(
                            habitual(&pace, begun, end, one),
                            habitual(&pace, begun, end, two),
                            habitual(&pace, begun, end, three)
                        );
                        all.extend(a.into_iter().chain(b).chain(c));
                    }
                    [] => {}
                }
                all
            };
            let mut all = tokio::select! {
                all = draining => all,
                () = sharing => Batches::new(),
            };
            all.sort();
            let limit = limit as usize;
            let allowed = limit + (limit / 10).max(1 + drains.len());
            let most = most_in_a_second(&all);
            prop_assert!(most <= allowed, "{most} in one second at a limit of {limit}");
            Ok(())
        });
        checked?;
    }
}

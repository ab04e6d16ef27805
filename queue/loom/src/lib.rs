//! The ring and the watermark under loom, every interleaving, with counters so narrow that all of them wrap.
#![cfg(loom)]
#![allow(dead_code, unreachable_pub, reason = "the files belong to the queue, which uses all of them")]

#[path = "../../src/ring.rs"]
mod ring;
#[path = "../../src/sync.rs"]
mod sync;
#[path = "../../src/disk/watermark.rs"]
mod watermark;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use loom::future::block_on;
    use loom::sync::Arc;
    use loom::thread;

    use crate::ring::{Consumer, Ring};
    use crate::watermark::Watermark;

    const FRAME_WORDS: u64 = 2;
    const FRAME: u64 = FRAME_WORDS * 8;
    const RECORD: u64 = FRAME | (1 << 32);
    const PADDING: u64 = FRAME | (2 << 32);

    fn model(test: impl Fn() + Send + Sync + 'static) {
        model_with(3, test);
    }

    fn model_with(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(test);
    }

    fn append(ring: &Ring, value: u64) -> Option<u64> {
        let mut claim = ring.claim(FRAME_WORDS, PADDING)?;
        let sequence = claim.sequence();
        claim.push(value);
        claim.commit(RECORD);
        Some(sequence)
    }

    /// The next record's second word.
    fn next(ring: &Ring, consumer: &mut Consumer) -> (u64, u64) {
        block_on(poll_fn(|context| ring.poll_committed(consumer, context)));
        let mut words = Vec::new();
        let gathered = ring.gather(consumer, u64::MAX, 1, |run| words.extend_from_slice(run));
        assert_eq!((gathered.records, gathered.words), (1, FRAME_WORDS));
        ring.release(gathered);
        (words[0], words[1])
    }

    #[test]
    fn two_producers_get_different_places_and_the_sleeping_consumer_sees_both() {
        model(|| {
            let ring = Arc::new(Ring::new(4, 2));
            let producers: Vec<_> = (0..2)
                .map(|value| {
                    let ring = Arc::clone(&ring);
                    thread::spawn(move || {
                        ring.try_reserve(FRAME_WORDS).unwrap();
                        append(&ring, value).unwrap()
                    })
                })
                .collect();
            let mut consumer = Consumer::default();
            let read = [next(&ring, &mut consumer), next(&ring, &mut consumer)];
            let sequences: Vec<u64> = producers.into_iter().map(|thread| thread.join().unwrap()).collect();
            for (value, sequence) in sequences.iter().enumerate() {
                assert_eq!(read[*sequence as usize], (RECORD, value as u64));
            }
            assert_ne!(sequences[0], sequences[1]);
        });
    }

    #[test]
    fn room_comes_back_and_every_counter_wraps() {
        model_with(2, || {
            let ring = Arc::new(Ring::new(4, 2));
            let producer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    for value in 0..5 {
                        while ring.try_reserve(FRAME_WORDS).is_none() {
                            thread::yield_now();
                        }
                        assert_eq!(append(&ring, value), Some(value));
                    }
                })
            };
            let mut consumer = Consumer::default();
            for value in 0..5 {
                assert_eq!(next(&ring, &mut consumer), (RECORD, value));
            }
            producer.join().unwrap();
        });
    }

    #[test]
    fn a_full_ring_refuses_and_an_abandoned_claim_is_padding() {
        model(|| {
            let ring = Arc::new(Ring::new(4, 2));
            let other = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    ring.try_reserve(FRAME_WORDS).unwrap();
                    drop(ring.claim(FRAME_WORDS, PADDING));
                })
            };
            ring.try_reserve(FRAME_WORDS).unwrap();
            append(&ring, 7).unwrap();
            let mut consumer = Consumer::default();
            let kinds = [next(&ring, &mut consumer).0, next(&ring, &mut consumer).0];
            assert!(kinds == [RECORD, PADDING] || kinds == [PADDING, RECORD]);
            other.join().unwrap();
            for _ in 0..2 {
                ring.try_reserve(FRAME_WORDS).unwrap();
            }
            assert_eq!(ring.try_reserve(FRAME_WORDS), None);
        });
    }

    #[test]
    fn what_was_claimed_before_the_close_is_drained() {
        model(|| {
            let ring = Arc::new(Ring::new(4, 2));
            let producer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    ring.try_reserve(FRAME_WORDS).unwrap();
                    append(&ring, 7).is_some()
                })
            };
            let closer = {
                let ring = Arc::clone(&ring);
                thread::spawn(move || ring.close())
            };
            let mut consumer = Consumer::default();
            let mut records = 0;
            loop {
                block_on(poll_fn(|context| ring.poll_committed(&consumer, context)));
                let gathered =
                    ring.gather(&mut consumer, u64::MAX, 1, |run| records += u64::from(run.contains(&RECORD)));
                ring.release(gathered);
                if gathered.records == 0 {
                    if ring.is_drained(&consumer) {
                        break;
                    }
                    thread::yield_now();
                }
            }
            closer.join().unwrap();
            let appended = producer.join().unwrap();
            assert_eq!(u64::from(appended), records, "an append that was taken is written");
        });
    }

    #[test]
    fn a_waiter_is_woken_by_the_acknowledgement() {
        model(|| {
            let watermark = Arc::new(Watermark::new(0, 1));
            let committer = {
                let watermark = Arc::clone(&watermark);
                thread::spawn(move || {
                    watermark.publish(1);
                    watermark.wake(1, 1);
                })
            };
            assert!(block_on(poll_fn(|context| watermark.poll(1, context))));
            committer.join().unwrap();
        });
    }

    #[test]
    fn a_late_poller_does_not_steal_the_slot_of_the_next() {
        model(|| {
            let watermark = Arc::new(Watermark::new(0, 1));
            let late = {
                let watermark = Arc::clone(&watermark);
                thread::spawn(move || assert!(block_on(poll_fn(|context| watermark.poll(1, context)))))
            };
            watermark.publish(1);
            watermark.wake(1, 1);
            // The slot is free for sequence 2 from here on.
            let committer = {
                let watermark = Arc::clone(&watermark);
                thread::spawn(move || {
                    watermark.publish(2);
                    watermark.wake(2, 2);
                })
            };
            assert!(block_on(poll_fn(|context| watermark.poll(2, context))));
            late.join().unwrap();
            committer.join().unwrap();
        });
    }

    #[test]
    fn a_failure_reaches_whoever_waits() {
        model(|| {
            let watermark = Arc::new(Watermark::new(0, 2));
            let committer = {
                let watermark = Arc::clone(&watermark);
                thread::spawn(move || watermark.fail())
            };
            assert!(!block_on(poll_fn(|context| watermark.poll(1, context))));
            committer.join().unwrap();
        });
    }
}

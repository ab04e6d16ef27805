//! Remembers which questions were answered how often, in bounded memory. Each question is answered rightly at most once.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;

use super::CheckError;

/// Locks, so that answers of different questions rarely meet.
const SHARDS: usize = 16;

/// Tries of the questions that got any answer.
pub(super) struct Tries {
    tries_max: u8,
    shard_max: usize,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// Tries left, by nonce. Looked up only, never walked through.
    left: HashMap<u128, u8>,
    /// (nonce, expiry) in order of the first answer, which is close to the order of expiry.
    oldest_first: VecDeque<(u128, u64)>,
}

impl Tries {
    pub(super) fn new(tries_max: u8, remembered_max: usize) -> Self {
        Self {
            tries_max: tries_max.max(1),
            shard_max: (remembered_max / SHARDS).max(1),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Counts one answer, in one step with the verdict: two right answers at once make one pass.
    pub(super) fn judge(
        &self,
        nonce: u128,
        expires_at_ms: u64,
        right: bool,
        now_ms: u64,
    ) -> Result<(), CheckError> {
        let mut shard = self.shards[nonce as usize % SHARDS].lock();
        let left = match shard.left.get(&nonce) {
            Some(&left) => left,
            None => {
                shard.make_room(self.shard_max, now_ms);
                shard.oldest_first.push_back((nonce, expires_at_ms));
                self.tries_max
            }
        };
        if left == 0 {
            return Err(CheckError::Expired);
        }
        shard.left.insert(nonce, if right { 0 } else { left - 1 });
        if right { Ok(()) } else { Err(CheckError::WrongAnswer) }
    }
}

impl Shard {
    /// Forgets what has expired, and the oldest where that is not enough.
    fn make_room(&mut self, shard_max: usize, now_ms: u64) {
        while let Some(&(nonce, expires_at_ms)) = self.oldest_first.front() {
            if now_ms < expires_at_ms && self.oldest_first.len() < shard_max {
                break;
            }
            self.oldest_first.pop_front();
            self.left.remove(&nonce);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CheckError, SHARDS, Tries};

    #[test]
    fn a_question_is_used_once_and_tried_three_times() {
        let tries = Tries::new(3, 1000);
        assert_eq!(tries.judge(1, 100, true, 0), Ok(()));
        assert_eq!(tries.judge(1, 100, true, 0), Err(CheckError::Expired));
        for _ in 0..3 {
            assert_eq!(tries.judge(2, 100, false, 0), Err(CheckError::WrongAnswer));
        }
        assert_eq!(tries.judge(2, 100, true, 0), Err(CheckError::Expired));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let tries = Tries::new(3, SHARDS * 4);
        for nonce in 0..(SHARDS as u128 * 100) {
            assert_eq!(tries.judge(nonce, 100, true, 0), Ok(()));
        }
        for shard in &tries.shards {
            let shard = shard.lock();
            assert_eq!((shard.left.len(), shard.oldest_first.len()), (4, 4));
        }
        let newest = SHARDS as u128 * 100 - 1;
        assert_eq!(tries.judge(newest, 100, true, 0), Err(CheckError::Expired));
    }

    #[test]
    fn the_expired_make_room() {
        let tries = Tries::new(3, SHARDS * 1000);
        for nonce in 0..500u128 {
            let _ = tries.judge(nonce * SHARDS as u128, 100, true, 0);
        }
        let _ = tries.judge(SHARDS as u128 * 1000, 300, true, 200);
        assert_eq!(tries.shards[0].lock().left.len(), 1);
    }
}

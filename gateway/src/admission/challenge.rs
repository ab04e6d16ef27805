//! The question before a purchase: a picture to read or a small proof of work. Owns how questions are made, bound to a
//! buyer and answered; never asks the ledger, and never lets the number of askers decide how many pictures are drawn.
//!
//! A question is a token that names everything needed to check it under a MAC, so any gateway with the same secrets
//! can check what another one asked, and a restart forgets nothing. The token never holds the answer:
//! a picture's answer is a keyed function of its serial number, which a buyer who lacks the key cannot compute.
//!
//! What it costs to share [`ChallengeOptions::pool_size`] pictures among all askers: whoever has read one picture can
//! answer it again for other accounts until it leaves the pool, after [`ChallengeOptions::ttl_ms`] × 4. The per-user
//! limit and the gate do not depend on the question; it spreads the spike and makes a script pay, no more.

mod pool;
mod puzzle;
mod token;
mod tries;

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use stock::{Now, SaleId, UserId};
use subtle::ConstantTimeEq;

use pool::Pool;
use queue::Random;
use token::{Keys, Question};
use tries::Tries;

/// Questions that must be there before a gateway is ready to ask any.
const READY_PICTURES: usize = 8;

/// What kind of question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Type the characters of a picture.
    Image,
    /// Find a number whose hash starts with zero bits.
    ProofOfWork,
}

impl Kind {
    /// The word of the public interface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::ProofOfWork => "proof-of-work",
        }
    }
}

/// How questions are asked.
#[derive(Debug, Clone)]
pub struct ChallengeOptions {
    /// What [`Challenges::issue`] asks.
    pub kind: Kind,
    /// Zero bits of a proof of work: 2^bits hashes on average. At most 40.
    pub pow_bits: u8,
    /// Added to `pow_bits` where a picture was due and the buyer asked for a proof of work instead, so that a script
    /// gains nothing by claiming not to see.
    pub alternative_bits_added: u8,
    /// How long a question may be answered.
    pub ttl_ms: u64,
    /// Pictures kept ready, about 4 KiB each; at least 16.
    pub pool_size: usize,
    /// Answers accepted for judgement per question, the right one included.
    pub tries_max: u8,
    /// Questions whose tries are remembered at once (about 80 bytes each). Under a flood of answers the oldest are forgotten before
    /// they expire: such a question regains its tries and its use. That costs another pass for the *same* user and
    /// sale, and a pass takes no units.
    pub answered_max: usize,
}

impl Default for ChallengeOptions {
    fn default() -> Self {
        Self {
            kind: Kind::Image,
            pow_bits: 18,
            alternative_bits_added: 3,
            ttl_ms: 120_000,
            pool_size: 512,
            tries_max: 3,
            answered_max: 131_072,
        }
    }
}

/// A question as it goes to the buyer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedChallenge {
    /// The token that comes back with the answer.
    pub challenge: String,
    /// What is asked.
    pub kind: Kind,
    /// Path of the picture, for [`Kind::Image`].
    pub image_url: Option<String>,
    /// What to solve, for [`Kind::ProofOfWork`].
    pub puzzle: Option<Puzzle>,
    /// First millisecond (Unix epoch) at which it can no longer be answered.
    pub expires_at_ms: u64,
}

/// Find a decimal number n such that SHA-256(prefix ":" n) starts with `bits` zero bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Puzzle {
    /// Always `sha256`.
    pub algorithm: &'static str,
    /// ASCII; unpredictable, so nothing can be solved ahead.
    pub prefix: String,
    /// Zero bits wanted, counted from the most significant bit of the first byte.
    pub bits: u8,
}

/// Why an answer earns no pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Not the answer. The question may be tried again, up to [`ChallengeOptions::tries_max`] answers.
    #[error("the answer is not right")]
    WrongAnswer,
    /// Too late, used already, or out of tries: ask for a new question.
    #[error("the question can no longer be answered: ask for a new one")]
    Expired,
    /// Not a question of ours, or one of another user or sale.
    #[error("this is not a question that was asked of you for this sale")]
    Malformed,
}

/// Asks questions and judges answers. Lock-free to ask; judging takes a short lock.
pub struct Challenges {
    options: ChallengeOptions,
    keys: Keys,
    pool: Pool,
    tries: Tries,
    random: Random,
    /// What pictures are drawn and asked for by. Every gateway of these secrets goes by the same clock.
    now: Now,
}

impl Challenges {
    /// `secrets` are (id, secret) pairs: the first one signs, all of them verify. The keys used here are derived from them
    /// by labels of their own, so the secrets may sign other things too. Gateways that share the secrets share the questions, and
    /// have to share the clock `now` of the pictures, too: a serial that another one has not drawn cannot be looked at there.
    ///
    /// # Panics
    /// Without any secret: nothing could be signed.
    #[must_use]
    pub fn new(options: ChallengeOptions, secrets: &[(String, Vec<u8>)], random: Random, now: Now) -> Self {
        assert!(!secrets.is_empty(), "questions need at least one secret");
        let options = ChallengeOptions { pow_bits: options.pow_bits.min(puzzle::BITS_MAX), ..options };
        Self {
            keys: Keys::derive(secrets),
            pool: Pool::new(options.pool_size, options.ttl_ms),
            tries: Tries::new(options.tries_max, options.answered_max),
            options,
            random,
            now,
        }
    }

    /// A question of the configured kind, which expires by the sale's clock: `now_ms` is its time. While no picture is drawn yet
    /// (before [`Self::ready`]) it is a proof of work.
    #[must_use]
    pub fn issue(&self, sale: &SaleId, user: &UserId, now_ms: u64) -> IssuedChallenge {
        let serial = match self.options.kind {
            Kind::Image => self.pool.pick((self.now)(), (self.random)()),
            Kind::ProofOfWork => None,
        };
        match serial {
            Some(serial) => self.ask(Question::Picture { serial }, sale, user, now_ms),
            None => self.issue_alternative(sale, user, now_ms),
        }
    }

    /// A proof of work, whatever is configured: the way for a buyer who cannot see a picture.
    #[must_use]
    pub fn issue_alternative(&self, sale: &SaleId, user: &UserId, now_ms: u64) -> IssuedChallenge {
        let added = match self.options.kind {
            Kind::Image => self.options.alternative_bits_added,
            Kind::ProofOfWork => 0,
        };
        let bits = self.options.pow_bits.saturating_add(added).min(puzzle::BITS_MAX);
        self.ask(Question::Work { bits }, sale, user, now_ms)
    }

    fn ask(&self, question: Question, sale: &SaleId, user: &UserId, now_ms: u64) -> IssuedChallenge {
        let nonce = (u128::from((self.random)()) << 64 | u128::from((self.random)())).to_be_bytes();
        let expires_at_ms = now_ms.saturating_add(self.options.ttl_ms);
        let challenge = self.keys.seal(&question, &nonce, expires_at_ms, sale, user);
        let (kind, image_url, puzzle) = match question {
            Question::Picture { serial } => {
                (Kind::Image, Some(format!("/api/v1/challenges/{}.png", self.keys.picture(serial))), None)
            }
            Question::Work { bits } => {
                let puzzle = Puzzle { algorithm: "sha256", prefix: puzzle::prefix(&nonce), bits };
                (Kind::ProofOfWork, None, Some(puzzle))
            }
        };
        IssuedChallenge { challenge, kind, image_url, puzzle, expires_at_ms }
    }

    /// Judges an answer. `Ok` uses the question up; whoever loses the reply asks for a new question.
    ///
    /// # Errors
    /// See [`CheckError`]. Tries are counted by each gateway for itself.
    pub fn check(
        &self,
        challenge: &str,
        answer: &str,
        sale: &SaleId,
        user: &UserId,
        now_ms: u64,
    ) -> Result<(), CheckError> {
        let opened = self.keys.open(challenge, sale, user).ok_or(CheckError::Malformed)?;
        if now_ms >= opened.expires_at_ms {
            return Err(CheckError::Expired);
        }
        let right = match opened.question {
            Question::Picture { serial } => {
                let expected = pool::answer(opened.answer_key, serial);
                // Lengths are no secret: every answer has the same.
                bool::from(pool::normalise(answer).as_bytes().ct_eq(expected.as_bytes()))
            }
            Question::Work { bits } => puzzle::solves(&opened.nonce, answer, bits),
        };
        self.tries.judge(u128::from_be_bytes(opened.nonce), opened.expires_at_ms, right, now_ms)
    }

    /// The picture (PNG) of an `image_url`'s last path segment, with or without `.png`. `None` for what is not ours or
    /// has left the pool. To be served with `Cache-Control: no-store`.
    #[must_use]
    pub fn image(&self, token: &str) -> Option<Bytes> {
        let serial = self.keys.open_picture(token.strip_suffix(".png").unwrap_or(token))?;
        self.pool.png(serial)
    }

    /// Whether questions of the configured kind can be asked.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.options.kind != Kind::Image || self.pool.len() >= READY_PICTURES
    }

    /// Draws at most one picture that is due (a few milliseconds of CPU). True while more are due.
    pub fn step(&self) -> bool {
        self.options.kind == Kind::Image && self.pool.step(self.keys.answer_key(), (self.now)())
    }

    /// Fills the pool and keeps rotating it; never returns. Each poll may draw for some milliseconds: drive it on a thread that
    /// serves no sockets.
    pub async fn run(&self) {
        if self.options.kind != Kind::Image {
            std::future::pending::<()>().await;
        }
        loop {
            if self.step() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(Duration::from_millis(self.pool.period_ms())).await;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests;

//! Plays one person from login to the end of the order: the linear story of a buyer, seen from outside.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::api::{Pass, Press, Shop, Status};
use crate::claim::Claim;
use crate::crowd::{Arrival, Person, Role};
use crate::random::Random;
use crate::tally::Tally;
use crate::token::{Signer, solve};

const PASS_TRIES_MAX: u32 = 40;
const PRESS_TRIES_MAX: u32 = 40;
const STATUS_TRIES_MAX: u32 = 200;
const TOKEN_VALID_S: u64 = 7_200;
/// Longer than a batch deadline: what a lost request could still do has been done, unless nobody has read it yet.
const DOUBT: Duration = Duration::from_millis(1_500);
const BOT_PRESS_EVERY: Duration = Duration::from_millis(20);
const PUZZLE_BITS_MAX: u32 = 24;

/// What everybody on the stage shares.
pub(crate) struct Stage {
    pub(crate) shop: Shop,
    pub(crate) signer: Signer,
    pub(crate) tally: Tally,
    pub(crate) sale: String,
    /// `/api/v1/sales/{sale}/orders`.
    pub(crate) press_path: String,
    pub(crate) arrival: Arrival,
    pub(crate) per_user_limit: u32,
    /// The target asks for proofs of work.
    pub(crate) puzzles: bool,
    pub(crate) begin: Instant,
    pub(crate) opening: Instant,
    pub(crate) spread: Duration,
    /// Nobody plays on after this.
    pub(crate) deadline: Instant,
    /// Whether the target is up: false between a kill and the restart.
    pub(crate) up: watch::Receiver<bool>,
    /// Turns true when everybody is to press once more with the same pass (after a restart).
    pub(crate) encore: Option<watch::Receiver<bool>>,
}

impl Stage {
    /// Plays `person` to the end and returns what was heard, a claim for each pass.
    pub(crate) async fn play(self: Arc<Self>, person: Person) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut random = Random::new(person.lane, 0x9e37);
        let press_at = self.press_at(&person);
        let presale = match person.role {
            Role::Late => random.below(2) == 0,
            Role::Impatient => true,
            _ => self.arrival == Arrival::Presale,
        };
        let pass_at = if presale { self.begin + person.pass_after } else { press_at };
        sleep_until(pass_at).await;
        let token = self.signer.token(&person.name, unix_now_s(), TOKEN_VALID_S);
        let intended = (!presale).then_some(press_at);
        let Some((pass, order_id)) = self.obtain_pass(&person, &token, intended).await else { return claims };
        let claim = Mutex::new(Claim::new(&person.name, order_id, person.role.is_demand()));
        let holder = Holder { stage: &self, person: &person, pass: &pass, claim: &claim };

        sleep_until(press_at).await;
        match person.role {
            Role::BotWithPass | Role::BotForging => holder.hammer().await,
            Role::DoublePress => holder.press_twice(press_at, &mut random).await,
            Role::HangUp => holder.press_and_hang_up(&mut random).await,
            Role::Greedy => holder.press_greedily(press_at).await,
            _ => holder.press_until_answered(press_at).await,
        }
        if claim.lock().promised {
            holder.follow_order().await;
        }
        if person.role == Role::SecondHelping && claim.lock().promised {
            claims.extend(self.second_helping(&person, &token, &claim).await);
        }
        if let Some(encore) = &self.encore {
            holder.press_once_more(encore.clone()).await;
        }
        claims.push(claim.into_inner());
        claims
    }

    fn press_at(&self, person: &Person) -> Instant {
        match person.role {
            Role::Impatient => self.opening - person.press_after,
            Role::Late => self.opening + self.spread + Duration::from_millis(500) + person.press_after,
            role if role.is_bot() => self.opening - Duration::from_millis(100),
            _ => self.opening + person.press_after,
        }
    }

    /// Asks until a pass or a definite no. With `intended`, the button was pressed then: a no to the pass is a no to the press.
    async fn obtain_pass(
        &self,
        person: &Person,
        token: &str,
        intended: Option<Instant>,
    ) -> Option<(String, String)> {
        for tries in 0..PASS_TRIES_MAX {
            if Instant::now() >= self.deadline {
                return None;
            }
            let pass = self.ask_for_pass(person, token).await;
            self.tally.pass(&pass);
            match pass {
                Pass::Granted { pass, order_id } => return Some((pass, order_id)),
                Pass::Refused(refusal, retry_after_s) if refusal.passes_by() => {
                    self.wait_to_retry(retry_after_s).await
                }
                Pass::Refused(refusal, retry_after_s) => {
                    if let Some(intended) = intended {
                        self.tally.sent(intended);
                        self.tally.answered(intended, &Press::Refused(refusal, retry_after_s), false);
                    }
                    return None;
                }
                Pass::Strange(_) => sleep(Duration::from_millis(500)).await,
                Pass::Lost(_) => self.wait_until_up(tries).await,
            }
        }
        None
    }

    async fn ask_for_pass(&self, person: &Person, token: &str) -> Pass {
        if !self.puzzles {
            return self.shop.pass(&self.sale, token, person.address, "{}").await;
        }
        let challenge = match self.shop.challenge(&self.sale, token, person.address).await {
            Ok(challenge) => challenge,
            Err(instead) => return instead,
        };
        let Some(puzzle) = challenge.puzzle.filter(|puzzle| puzzle.bits <= PUZZLE_BITS_MAX) else {
            return Pass::Strange("a challenge without a puzzle that can be solved".into());
        };
        // 64 times the mean of tries: that no answer is among them is less likely than e^-64.
        let Some(answer) = solve(&puzzle.prefix, puzzle.bits, 64 << puzzle.bits) else {
            return Pass::Strange("a puzzle without an answer".into());
        };
        let body =
            serde_json::json!({ "challenge": challenge.challenge, "answer": answer.to_string() }).to_string();
        self.shop.pass(&self.sale, token, person.address, &body).await
    }

    /// Another pass for somebody who has won: a claim of its own, unless the target granted the live pass again.
    async fn second_helping(&self, person: &Person, token: &str, first: &Mutex<Claim>) -> Option<Claim> {
        let (pass, order_id) = self.obtain_pass(person, token, Some(Instant::now())).await?;
        if order_id == first.lock().order_id {
            Holder { stage: self, person, pass: &pass, claim: first }
                .press_until_answered(Instant::now())
                .await;
            return None;
        }
        let claim = Mutex::new(Claim::new(&person.name, order_id, false));
        Holder { stage: self, person, pass: &pass, claim: &claim }.press_until_answered(Instant::now()).await;
        Some(claim.into_inner())
    }

    async fn wait_to_retry(&self, retry_after_s: Option<u64>) {
        let wait = Duration::from_secs(retry_after_s.unwrap_or(1).clamp(1, 10));
        sleep_until((Instant::now() + wait).min(self.deadline)).await;
    }

    /// Waits until the target is up, a little at first and longer with each try.
    async fn wait_until_up(&self, tries: u32) {
        sleep(Duration::from_millis(100 << tries.min(4))).await;
        let mut up = self.up.clone();
        // An error says that the deadline passed or that nobody restarts any more: the caller's bound on tries ends it.
        let _ = timeout_at(self.deadline, up.wait_for(|up| *up)).await;
    }
}

/// One person with one pass.
struct Holder<'a> {
    stage: &'a Stage,
    person: &'a Person,
    pass: &'a str,
    claim: &'a Mutex<Claim>,
}

impl Holder<'_> {
    /// One press, counted and kept.
    async fn press(&self, intended: Instant, body: &str) -> Press {
        self.press_with(self.pass, intended, body).await
    }

    async fn press_with(&self, pass: &str, intended: Instant, body: &str) -> Press {
        let stage = self.stage;
        stage.tally.sent(intended);
        let press = stage.shop.press(&stage.press_path, pass, self.person.address, body).await;
        let first = self.claim.lock().hear(&press);
        stage.tally.answered(intended, &press, first);
        press
    }

    /// Presses until a yes or a definite no; doubts are resolved by asking for the order first.
    async fn press_until_answered(&self, mut intended: Instant) {
        for tries in 0..PRESS_TRIES_MAX {
            if Instant::now() >= self.stage.deadline {
                return;
            }
            match self.press(intended, "{}").await {
                Press::Accepted { .. } => return,
                Press::Refused(refusal, retry_after_s) if refusal.passes_by() => {
                    self.stage.wait_to_retry(retry_after_s).await;
                }
                Press::Refused(..) => {
                    if self.claim.lock().in_doubt {
                        self.look().await;
                    }
                    return;
                }
                Press::Uncertain { retry_after_s, .. } => {
                    self.stage.wait_to_retry(Some(retry_after_s.unwrap_or(2))).await;
                    if self.look().await {
                        return;
                    }
                }
                Press::Strange(_) => sleep(DOUBT).await,
                Press::Lost(crate::http::Lost::NotSent(_)) => self.stage.wait_until_up(tries).await,
                Press::Lost(crate::http::Lost::Unanswered(_)) => {
                    if self.resolve().await {
                        return;
                    }
                }
            }
            intended = Instant::now();
        }
    }

    async fn press_twice(&self, intended: Instant, random: &mut Random) {
        let second_at = intended + Duration::from_millis(random.below(300));
        let second = async {
            sleep_until(second_at).await;
            self.press(second_at, "{}").await
        };
        let (first, second) = tokio::join!(self.press(intended, "{}"), second);
        let accepted = |press: &Press| matches!(press, Press::Accepted { .. });
        if !accepted(&first) && !accepted(&second) {
            let unanswered = self.claim.lock().unanswered > 0;
            if unanswered && self.resolve().await {
                return;
            }
            self.press_until_answered(Instant::now()).await;
        }
    }

    async fn press_and_hang_up(&self, random: &mut Random) {
        let whole = random.below(4) != 0;
        let stage = self.stage;
        stage.tally.sent(Instant::now());
        stage.tally.hung_up();
        let left = stage
            .shop
            .press_and_hang_up(&stage.press_path, self.pass, self.person.address, whole)
            .await
            .is_ok();
        // Half a request is no request: a row after it would be a row from nothing.
        if left && whole {
            self.claim.lock().hang_up();
        }
        sleep(Duration::from_millis(50 + random.below(1_000))).await;
        if left && whole {
            self.look().await;
        }
        self.press_until_answered(Instant::now()).await;
    }

    async fn press_greedily(&self, intended: Instant) {
        let body = format!(r#"{{"quantity":{}}}"#, self.stage.per_user_limit + 1);
        if !matches!(self.press(intended, &body).await, Press::Accepted { .. }) {
            self.press_until_answered(Instant::now()).await;
        }
    }

    async fn hammer(&self) {
        let stage = self.stage;
        let until = stage.opening + stage.spread + Duration::from_secs(2);
        let forged;
        let pass = if self.person.role == Role::BotForging {
            forged = forge(self.pass);
            &forged
        } else {
            self.pass
        };
        let mut next = Instant::now();
        while next < until.min(stage.deadline) {
            if let Press::Lost(_) = self.press_with(pass, next, "{}").await {
                stage.wait_until_up(2).await;
            }
            next = (next + BOT_PRESS_EVERY).max(Instant::now());
            sleep_until(next).await;
        }
        // A bot may have won, or be in doubt like everybody else.
        if self.person.role == Role::BotWithPass && !self.claim.lock().promised {
            self.press_until_answered(Instant::now()).await;
        }
    }

    /// After a silence of the server: waits until what was sent has had its effect, and asks whether it had one.
    async fn resolve(&self) -> bool {
        self.stage.wait_until_up(0).await;
        sleep(DOUBT).await;
        let found = self.look().await;
        let mut claim = self.claim.lock();
        // With a hang-up of one's own, nobody knows which of the two was executed.
        claim.executed_unanswered |= found && !claim.promised && claim.hung_up == 0;
        found
    }

    /// Asks for the order once it must be known; true when it is there.
    async fn look(&self) -> bool {
        for tries in 0..STATUS_TRIES_MAX {
            if Instant::now() >= self.stage.deadline {
                return false;
            }
            match self.status().await {
                Status::Found { .. } => {
                    self.claim.lock().see();
                    return true;
                }
                Status::Absent => {
                    self.claim.lock().see_absent();
                    return false;
                }
                Status::Unknown(_) => self.stage.wait_until_up(tries).await,
            }
        }
        false
    }

    /// Asks for a promised order until it has left the queue.
    async fn follow_order(&self) {
        for tries in 0..STATUS_TRIES_MAX {
            if Instant::now() >= self.stage.deadline {
                return;
            }
            match self.status().await {
                Status::Found { status, poll_after } => {
                    self.claim.lock().see();
                    if status != "queued" {
                        return;
                    }
                    sleep(poll_after).await;
                }
                Status::Absent => {
                    self.claim.lock().see_absent();
                    return;
                }
                Status::Unknown(_) => self.stage.wait_until_up(tries).await,
            }
        }
    }

    async fn status(&self) -> Status {
        self.stage.tally.status_call();
        let order_id = self.claim.lock().order_id.clone();
        self.stage.shop.status(&order_id, self.pass, self.person.address).await
    }

    /// After a restart: the same pass must still name the same order, and a promised order must still be there.
    async fn press_once_more(&self, mut encore: watch::Receiver<bool>) {
        if timeout_at(self.stage.deadline, encore.wait_for(|go| *go)).await.is_err() {
            return;
        }
        // Looked at before it is pressed again: a press would make good what the crash has lost.
        if self.claim.lock().promised {
            self.follow_order().await;
        }
        // Every third leaves the sale to itself: what was promised must come about without help.
        if !self.person.lane.is_multiple_of(3) {
            self.press_until_answered(Instant::now()).await;
            if self.claim.lock().promised {
                self.follow_order().await;
            }
        }
    }
}

/// The pass with one character of its middle changed.
fn forge(pass: &str) -> String {
    let middle = pass.len() / 2;
    let swap = |(index, c)| if index == middle { if c == 'A' { 'B' } else { 'A' } } else { c };
    pass.chars().enumerate().map(swap).collect()
}

fn unix_now_s() -> u64 {
    crate::clock::unix_now_ms() / 1_000
}

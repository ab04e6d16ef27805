//! Buyers: each a user of their own who wants one unit, who presses again with the same pass until the answer is a yes or a
//! no, at whichever gateway answers. It remembers what each was told and judges nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::Client;

use crate::scene::PATIENCE;

const PLAYERS: u64 = 12;
/// Longer than a gateway needs to say `uncertain`.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Between two buyers of one player of a calm crowd: about 100 a second in all.
const GENTLE: Duration = Duration::from_millis(100);
/// Before the same button again.
const AGAIN: Duration = Duration::from_millis(50);

/// What one buyer was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim {
    pub(crate) user: String,
    pub(crate) order: String,
    /// 202, at least once.
    pub(crate) promised: bool,
    /// Their order was shown to them, though no 202 ever reached them.
    pub(crate) shown: bool,
    /// Shown or answered as rejected, or `pass-used`.
    pub(crate) rejected: bool,
    /// A last word that says no.
    pub(crate) refused: bool,
}

/// The crowd. It ends when the demand is used up and everybody has had a last word.
pub(crate) struct Crowd {
    sale: &'static str,
    ports: Vec<u16>,
    demand: u64,
    buyers: AtomicU64,
    hurried: AtomicBool,
    home: AtomicBool,
    promised: AtomicU64,
    refused: AtomicU64,
    troubled: AtomicU64,
    last_trouble: Mutex<String>,
    claims: Mutex<Vec<Claim>>,
}

enum Told {
    Yes,
    No,
    /// Neither, and nothing was taken by this attempt.
    NotNow,
    /// Neither; it may have been carried out.
    Unknown,
}

impl Crowd {
    pub(crate) fn new(sale: &'static str, ports: Vec<u16>, demand: u64) -> Self {
        Self {
            sale,
            ports,
            demand,
            buyers: AtomicU64::new(0),
            hurried: AtomicBool::new(true),
            home: AtomicBool::new(false),
            promised: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            troubled: AtomicU64::new(0),
            last_trouble: Mutex::default(),
            claims: Mutex::default(),
        }
    }

    /// Lets the players go.
    pub(crate) fn begin(self: Arc<Self>) -> Vec<JoinHandle<()>> {
        (0..PLAYERS)
            .map(|player| {
                let crowd = self.clone();
                thread::spawn(move || crowd.play(player))
            })
            .collect()
    }

    /// A pause after each buyer from now on.
    pub(crate) fn calm_down(&self) {
        self.hurried.store(false, Ordering::Relaxed);
    }

    /// No pauses any more, as in the beginning.
    pub(crate) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Ends without last words, when the test has failed anyway.
    pub(crate) fn go_home(&self) {
        self.home.store(true, Ordering::Relaxed);
    }

    pub(crate) fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }

    /// Attempts that ended with neither yes nor no.
    pub(crate) fn troubled(&self) -> u64 {
        self.troubled.load(Ordering::Relaxed)
    }

    pub(crate) fn claims(&self) -> Vec<Claim> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A buyer whom a strike played itself, and who holds nothing in the end.
    pub(crate) fn remember(&self, user: &str, order: &str) {
        let claim =
            Claim { user: user.to_owned(), order: order.to_owned(), promised: true, ..Claim::default() };
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    }

    pub(crate) fn summary(&self) -> String {
        format!(
            "{} buyers, {} promised, {} refused, {} attempts in trouble, the last: {}",
            self.buyers.load(Ordering::Relaxed),
            self.promised(),
            self.refused.load(Ordering::Relaxed),
            self.troubled(),
            self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner)
        )
    }

    /// One buyer more, at this gateway alone and once: whether it sold, or had nothing left to sell.
    pub(crate) fn one_more_at(&self, port: u16) -> bool {
        let mut buyer = Buyer::new(self, self.next_user());
        let mut client = Client::new(port, ANSWER_WITHIN);
        if !buyer.get_pass(&mut client) {
            // Sold out counts: a gateway that can say no has a ledger that answers.
            return buyer.claim.refused;
        }
        let told = buyer.press(&mut client);
        let done = matches!(told, Told::Yes | Told::No);
        if done {
            buyer.note(matches!(told, Told::Yes));
        } else {
            // A last word is owed to everybody who holds a pass.
            let mut clients = self.clients();
            buyer.insist(&mut clients, matches!(told, Told::Unknown));
        }
        done
    }

    fn clients(&self) -> Vec<Client> {
        self.ports.iter().map(|&port| Client::new(port, ANSWER_WITHIN)).collect()
    }

    fn next_user(&self) -> u64 {
        self.buyers.fetch_add(1, Ordering::Relaxed)
    }

    fn play(&self, player: u64) {
        let mut clients = self.clients();
        loop {
            let user = self.next_user();
            if user >= self.demand || self.home.load(Ordering::Relaxed) {
                return;
            }
            clients.rotate_left(usize::from((user + player) % 2 == 1));
            let mut buyer = Buyer::new(self, user);
            if buyer.find_pass(&mut clients) {
                buyer.insist(&mut clients, false);
            }
            if !self.hurried.load(Ordering::Relaxed) {
                thread::sleep(GENTLE);
            }
        }
    }

    fn trouble(&self, what: impl std::fmt::Display) {
        self.troubled.fetch_add(1, Ordering::Relaxed);
        *self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner) = what.to_string();
    }
}

struct Buyer<'a> {
    crowd: &'a Crowd,
    claim: Claim,
    pass: String,
}

impl<'a> Buyer<'a> {
    fn new(crowd: &'a Crowd, number: u64) -> Self {
        let claim = Claim { user: format!("buyer-{number}"), ..Claim::default() };
        Self { crowd, claim, pass: String::new() }
    }

    /// Asks one gateway after the other; false if there is nothing left to want.
    fn find_pass(&mut self, clients: &mut [Client]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no pass for {} within {PATIENCE:?}", self.claim.user);
            if self.get_pass(&mut clients[0]) {
                return true;
            }
            if self.claim.refused || self.crowd.home.load(Ordering::Relaxed) {
                return false;
            }
            clients.rotate_left(1);
            thread::sleep(AGAIN);
        }
    }

    fn get_pass(&mut self, client: &mut Client) -> bool {
        let path = format!("/api/v1/sales/{}/passes", self.crowd.sale);
        let answer = client.request("POST", &path, &[("Floodgate-User", &self.claim.user), JSON], "{}");
        match answer {
            Ok(answer) if answer.status == 201 => {
                let body: Value = serde_json::from_str(&answer.body).unwrap();
                self.pass = body["pass"].as_str().unwrap().to_owned();
                self.claim.order = body["order_id"].as_str().unwrap().to_owned();
                true
            }
            Ok(answer) if answer.status == 410 => {
                self.claim.refused = true;
                self.crowd.refused.fetch_add(1, Ordering::Relaxed);
                false
            }
            Ok(answer) => {
                self.crowd.trouble(format_args!("pass: {} {}", answer.status, answer.body));
                false
            }
            Err(error) => {
                self.crowd.trouble(format_args!("pass: {error}"));
                false
            }
        }
    }

    /// Presses until there is a last word. Whoever never gets one is a broken promise too.
    fn insist(&mut self, clients: &mut [Client], mut doubted: bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.crowd.home.load(Ordering::Relaxed) {
                return;
            }
            assert!(Instant::now() < deadline, "no last word for {:?} within {PATIENCE:?}", self.claim);
            let mut told = self.press(&mut clients[0]);
            doubted |= matches!(told, Told::Unknown);
            // A refusal speaks of one attempt only: whoever had no answer before asks first.
            if matches!(told, Told::No) && doubted {
                told = self.ask(&mut clients[0]);
            }
            match told {
                Told::Yes => return self.note(true),
                Told::No => return self.note(false),
                Told::NotNow | Told::Unknown => {}
            }
            clients.rotate_left(1);
            thread::sleep(AGAIN);
        }
    }

    fn press(&mut self, client: &mut Client) -> Told {
        let path = format!("/api/v1/sales/{}/orders", self.crowd.sale);
        let headers = [("Floodgate-User", &*self.claim.user), ("Floodgate-Pass", &*self.pass), JSON];
        let answer = match client.request("POST", &path, &headers, "{}") {
            Ok(answer) => answer,
            Err(error) => {
                self.crowd.trouble(format_args!("press: {error}"));
                return Told::Unknown;
            }
        };
        match answer.status {
            202 => {
                self.claim.promised = true;
                self.claim.rejected |= answer.body.contains("\"rejected\"");
                Told::Yes
            }
            409 if answer.body.contains("pass-used") => {
                self.claim.rejected = true;
                Told::No
            }
            409 | 410 => Told::No,
            status => {
                self.crowd.trouble(format_args!("press: {status} {}", answer.body));
                // Anything else says that nothing was taken, but for nginx's own words on a gateway that broke off or was slow.
                let unknown = matches!(status, 500 | 502 | 504) || answer.body.contains("uncertain");
                if unknown { Told::Unknown } else { Told::NotNow }
            }
        }
    }

    fn ask(&mut self, client: &mut Client) -> Told {
        let path = format!("/api/v1/orders/{}", self.claim.order);
        let headers = [("Floodgate-User", &*self.claim.user), ("Floodgate-Pass", &*self.pass)];
        match client.request("GET", &path, &headers, "") {
            Ok(answer) if answer.status == 200 => {
                self.claim.shown = true;
                self.claim.rejected |= answer.body.contains("\"rejected\"");
                Told::Yes
            }
            Ok(answer) if answer.status == 404 => Told::No,
            _ => Told::Unknown,
        }
    }

    fn note(&mut self, yes: bool) {
        self.claim.refused = !yes;
        let counter = if yes { &self.crowd.promised } else { &self.crowd.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        self.crowd.claims.lock().unwrap_or_else(PoisonError::into_inner).push(self.claim.clone());
    }
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

//! What happened, in order: hashed, so that two runs of a seed can be compared, and printed if `FLOODGATE_TRACE` is set.

use std::cell::Cell;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

pub(crate) struct Trace {
    hash: Cell<u64>,
    events: Cell<u64>,
    begun: Instant,
    print: bool,
}

impl Trace {
    pub(crate) fn new() -> Self {
        let print = std::env::var_os("FLOODGATE_TRACE").is_some();
        Self { hash: Cell::new(0), events: Cell::new(0), begun: Instant::now(), print }
    }

    pub(crate) fn say(&self, event: fmt::Arguments<'_>) {
        let at_us = self.begun.elapsed().as_micros() as u64;
        // DefaultHasher::new is SipHash with fixed keys: the same in every process.
        let mut hasher = DefaultHasher::new();
        (self.hash.get(), at_us, event.to_string()).hash(&mut hasher);
        self.hash.set(hasher.finish());
        self.events.set(self.events.get() + 1);
        if self.print {
            println!("{:>10.3} ms  {event}", at_us as f64 / 1_000.0);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.get()
    }

    pub(crate) fn events(&self) -> u64 {
        self.events.get()
    }
}

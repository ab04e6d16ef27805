//! What `/readyz` says of a process, a gateway's or a worker's: conditions from a closed set, each with the time since when it holds. It
//! looks at nothing itself.
//!
//! Unready takes a gateway out of its balancer, so only that makes it so which another gateway would not have, or which no purchase at
//! this one survives. What all gateways have at once, the database away above all, is a note: taken out, they would sell nothing,
//! though purchases succeed.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde::Serialize;
use stock::Timestamp;

/// One of the words of `conditions`: `docs/http.md` has them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The process was told to end.
    ShuttingDown,
    /// No life of the ledger was ever offered to purchases here.
    NoEpoch,
    /// Others see the ledger that the sales live in, this process sees another one.
    OtherLedger,
    /// The registry has another opening of the own log: nothing is promised here until a restart.
    OtherOpening,
    /// The orders database lacks orders that the own log has handed over: nothing is promised here until a restart.
    OrdersLost,
    /// A write to the own log failed, or it was closed.
    LogFailed,
    /// The own log or its disk has no room, or its directory is gone.
    LogFull,
    /// The own log's disk does not answer.
    LogStalled,
    /// [`BACKLOG_PERCENT_MAX`] is reached.
    Backlog,
    /// A worker's drain has stopped for good.
    DrainStopped,
    /// A worker's drain tries the same again and again.
    DrainHeldUp,
    /// A log belongs to another orders database than a worker's.
    LogRefused,
    /// The orders database is out of reach.
    OrdersAway,
    /// No server of the ledger that is needed answers.
    LedgerSilent,
    /// One of several does not.
    LedgerInPart,
    /// The ledger is not open.
    LedgerRebuilding,
    /// Sales of ours are another deployment's in the ledger.
    ForeignSales,
    /// The sold-out flag's store is out of touch.
    FlagOutOfTouch,
    /// Questions are drawn slower than they are asked for.
    FewQuestions,
    /// A worker's own log takes no records.
    OwnLog,
    /// The lease of this instance in the ledger cannot be renewed.
    LeaseFailing,
    /// Lines of the process's log cannot be written.
    LogLinesLost,
    /// The clock of this machine, or of the ledger, has jumped lately.
    ClockJumped,
    /// Nothing is closed, since clocks do not agree.
    ClocksApart,
    /// Money is not sent back.
    RefundsStuck,
}

/// From so much of `queue.backlog_max` on a gateway is unready: what is promised elsewhere is drained sooner.
pub const BACKLOG_PERCENT_MAX: u64 = 90;

impl Condition {
    /// Every one of them.
    pub const ALL: [Self; 25] = [
        Self::ShuttingDown,
        Self::NoEpoch,
        Self::OtherLedger,
        Self::OtherOpening,
        Self::OrdersLost,
        Self::LogFailed,
        Self::LogFull,
        Self::LogStalled,
        Self::Backlog,
        Self::DrainStopped,
        Self::DrainHeldUp,
        Self::LogRefused,
        Self::OrdersAway,
        Self::LedgerSilent,
        Self::LedgerInPart,
        Self::LedgerRebuilding,
        Self::ForeignSales,
        Self::FlagOutOfTouch,
        Self::FewQuestions,
        Self::OwnLog,
        Self::LeaseFailing,
        Self::LogLinesLost,
        Self::ClockJumped,
        Self::ClocksApart,
        Self::RefundsStuck,
    ];

    /// For programs. Never changes.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutting-down",
            Self::NoEpoch => "no-epoch",
            Self::OtherLedger => "other-ledger",
            Self::OtherOpening => "other-opening",
            Self::OrdersLost => "orders-lost",
            Self::LogFailed => "log-failed",
            Self::LogFull => "log-full",
            Self::LogStalled => "log-stalled",
            Self::Backlog => "backlog",
            Self::DrainStopped => "drain-stopped",
            Self::DrainHeldUp => "drain-held-up",
            Self::LogRefused => "log-refused",
            Self::OrdersAway => "orders-away",
            Self::LedgerSilent => "ledger-silent",
            Self::LedgerInPart => "ledger-in-part",
            Self::LedgerRebuilding => "ledger-rebuilding",
            Self::ForeignSales => "foreign-sales",
            Self::FlagOutOfTouch => "flag-out-of-touch",
            Self::FewQuestions => "few-questions",
            Self::OwnLog => "own-log",
            Self::LeaseFailing => "lease-failing",
            Self::LogLinesLost => "log-lines-lost",
            Self::ClockJumped => "clock-jumped",
            Self::ClocksApart => "clocks-apart",
            Self::RefundsStuck => "refunds-stuck",
        }
    }

    /// For people: what it is, and where it is not plain, what to do.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutting down",
            Self::NoEpoch => "no life of the stock ledger is known here in which anything could be sold",
            Self::OtherLedger => {
                "others see the stock ledger that the sales live in, and this process another one: compare stock.redis_urls and \
                 stock.sentinel_master here and there; the log names both"
            }
            Self::OtherOpening => {
                "the registry of the orders database has another opening of this process's log: the database was put back, or a copy of \
                 the log was opened; nothing is promised here until a restart, which says what to do"
            }
            Self::OrdersLost => {
                "the orders database lacks orders that this process's log has handed over: it was put back to an older state; nothing is \
                 promised here until a restart. Stop everything and do what docs/queue.md, \"After a restore of the database\", says"
            }
            Self::LogFailed => {
                "the queue takes no records: a write to its disk failed, or it was closed; a restart tells what it holds"
            }
            Self::LogFull => {
                "the queue takes no records: its backlog or its disk is full, or its directory is gone"
            }
            Self::LogStalled => "the queue takes no records: its disk does not answer",
            Self::Backlog => "the queue's backlog has reached 90 % of queue.backlog_max",
            Self::DrainStopped => "a log is drained no more",
            Self::DrainHeldUp => "the drain of a log is held up",
            Self::LogRefused => "a log belongs to another orders database",
            Self::OrdersAway => "the orders are out of reach",
            Self::LedgerSilent => "the stock ledger does not answer",
            Self::LedgerInPart => {
                "a server of the stock ledger does not answer: the sales that it holds cannot be bought"
            }
            Self::LedgerRebuilding => "the stock ledger is being rebuilt",
            Self::ForeignSales => {
                "sales of ours belong to another orders database in the stock ledger: give this deployment a stock.key_prefix or a \
                 Redis of its own; if the other database is gone for good, `floodgate ledger adopt`"
            }
            Self::FlagOutOfTouch => {
                "the sold-out flag's store is out of touch: purchases of sold-out sales ask the stock ledger"
            }
            Self::FewQuestions => "too few questions are ready",
            Self::OwnLog => "this worker's own log takes no records",
            Self::LeaseFailing => {
                "this instance's lease in the stock ledger cannot be renewed: others take it for dead"
            }
            Self::LogLinesLost => {
                "lines of the log are lost: its disk is full, or its reader has gone or does not read"
            }
            Self::ClockJumped => {
                "the clock of this machine, or of the stock ledger's, has jumped within the last 10 minutes: see to its time server; \
                 the log says by how much"
            }
            Self::ClocksApart => {
                "no order is closed: the clocks of database, stock ledger and this process are more than 5 s apart, or the database does \
                 not answer; see to the time servers"
            }
            Self::RefundsStuck => {
                "money is not sent back: refunds were due for more than a minute, or have had a final no; set payment.refund_url, and \
                 see `floodgate refunds list`"
            }
        }
    }

    /// Whether a gateway of which it holds should get no buyers. Everything else is a note.
    #[must_use]
    pub fn stops_gateway(self) -> bool {
        self <= Self::Backlog
    }
}

/// A condition that holds, as `/readyz` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// See [`Condition::word`].
    pub word: &'static str,
    /// When it was first seen.
    pub since: Timestamp,
}

/// Since when conditions hold, for one process. As many entries as there are conditions, at most.
#[derive(Debug, Default)]
pub struct Conditions(Mutex<BTreeMap<Condition, Timestamp>>);

impl Conditions {
    /// These hold at `now`, and no others.
    pub fn look(&self, now: Timestamp, holding: &[Condition]) -> Vec<Holding> {
        let mut since = self.0.lock();
        since.retain(|condition, _| holding.contains(condition));
        for condition in holding {
            since.entry(*condition).or_insert(now);
        }
        since.iter().map(|(condition, since)| Holding { word: condition.word(), since: *since }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_distinct_and_the_documents_have_each() {
        let documents = include_str!("../../docs/http.md");
        let mut words: Vec<_> = Condition::ALL.iter().map(|condition| condition.word()).collect();
        for word in &words {
            assert!(documents.contains(&format!("| `{word}` |")), "docs/http.md does not explain {word}");
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Condition::ALL.len());
    }

    #[test]
    fn what_all_gateways_have_at_once_takes_none_out() {
        let stopping: Vec<_> = Condition::ALL
            .into_iter()
            .filter(|condition| condition.stops_gateway())
            .map(Condition::word)
            .collect();
        let expected = [
            "shutting-down",
            "no-epoch",
            "other-ledger",
            "other-opening",
            "orders-lost",
            "log-failed",
            "log-full",
            "log-stalled",
            "backlog",
        ];
        assert_eq!(stopping, expected);
    }

    #[test]
    fn a_condition_holds_since_it_was_first_seen_without_a_break() {
        let conditions = Conditions::default();
        let (silent, away) = (Condition::LedgerSilent, Condition::OrdersAway);
        let at = |ms, holding: &[Condition]| {
            let held = conditions.look(Timestamp(ms), holding);
            held.into_iter().map(|held| (held.word, held.since.0)).collect::<Vec<_>>()
        };
        assert_eq!(at(1, &[]), []);
        assert_eq!(at(2, &[silent]), [("ledger-silent", 2)]);
        assert_eq!(at(3, &[silent, away]), [("orders-away", 3), ("ledger-silent", 2)]);
        assert_eq!(at(4, &[away]), [("orders-away", 3)]);
        assert_eq!(at(5, &[away, silent]), [("orders-away", 3), ("ledger-silent", 5)]);
    }
}

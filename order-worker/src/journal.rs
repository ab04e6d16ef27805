//! The operators' journal: who changed what, each row under a MAC that covers the row before it. Knows no database; the secret
//! leaves [`JournalKey`] neither as text nor into a row.
//!
//! What the chain shows: a row changed, removed from the middle, or put elsewhere, by anybody who has the database and not the secret.
//! Rows cut off from its end leave a shorter chain that is whole: only a head that was kept elsewhere tells, and [`HeadWatch`]
//! logs one every hour.

mod chain;
mod watch;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hmac::{Hmac, Mac};
use sha2::Sha256;

pub use chain::{Broken, Chain, verify_chain};
pub use watch::{HeadWatch, Seen};

/// An operator's name has at most so many characters.
const OPERATOR_CHARS_MAX: usize = 64;
/// What a change was made for has at most so many characters.
const REASON_CHARS_MAX: usize = 255;
/// What separates the MACs of this secret from one another.
const ROW: &[u8] = b"floodgate journal row 1";
const KEY_ID: &[u8] = b"floodgate journal key id 1";

/// What an operator may do, and what is done on behalf of the configuration at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Changes sales, orders and the ledger.
    Operate,
    /// The configuration's sales, at a start.
    Config,
}

impl Role {
    /// As the row's `role`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operate => "operate",
            Self::Config => "config",
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A sale was published.
    SalePublish,
    /// Units were added to it.
    SaleRestock,
    /// It refuses everybody.
    SalePause,
    /// It lets buyers in again.
    SaleResume,
    /// It ends earlier.
    SaleEnd,
    /// It ends now, perhaps with its orders.
    SaleWithdraw,
    /// It was corrected.
    SaleEdit,
    /// An unpaid order was closed in its buyer's place.
    OrderCancel,
    /// An unpaid order was closed.
    OrderClose,
    /// Money of a paid order was asked back.
    OrderRefund,
    /// A stuck refund was to be tried again.
    RefundRetry,
    /// A new life of the ledger was begun.
    LedgerRebuild,
    /// The same without one instance's log.
    LedgerForget,
    /// The same over what another deployment had in the ledger.
    LedgerAdopt,
}

impl Action {
    /// As the row's `action`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SalePublish => "sale publish",
            Self::SaleRestock => "sale restock",
            Self::SalePause => "sale pause",
            Self::SaleResume => "sale resume",
            Self::SaleEnd => "sale end",
            Self::SaleWithdraw => "sale withdraw",
            Self::SaleEdit => "sale edit",
            Self::OrderCancel => "order cancel",
            Self::OrderClose => "order close",
            Self::OrderRefund => "order refund",
            Self::RefundRetry => "refund retry",
            Self::LedgerRebuild => "ledger rebuild",
            Self::LedgerForget => "ledger forget",
            Self::LedgerAdopt => "ledger adopt",
        }
    }
}

/// 32 bytes, as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash([u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 hexadecimal digits")]
pub struct NoHash;

impl FromStr for Hash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoHash);
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[place * 2..place * 2 + 2], 16).map_err(|_| NoHash)?;
        }
        Ok(Self(bytes))
    }
}

/// Where a chain ends: its last row, or 0 and zeros before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Of the last row.
    pub seq: u64,
    /// Of the last row.
    pub hash: Hash,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.seq, self.hash)
    }
}

/// A row of `floodgate_journal`, as it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// From 1, without a gap.
    pub seq: u64,
    /// By the database's clock.
    pub at: String,
    /// Who did it.
    pub operator: String,
    /// As what.
    pub role: String,
    /// What was done.
    pub action: String,
    /// To which sale, order or log; `ledger` for the ledger as a whole.
    pub subject: String,
    /// JSON: what stood there before.
    pub before: Option<String>,
    /// JSON: what stands there now.
    pub after: Option<String>,
    /// What for.
    pub reason: Option<String>,
    /// Of the row before; zeros in the first.
    pub prev_hash: String,
    /// HMAC-SHA-256 over all of the above.
    pub hash: String,
}

/// The secret under which rows are chained. Cheap to clone; never shows.
#[derive(Clone)]
pub struct JournalKey(Arc<Hmac<Sha256>>);

impl fmt::Debug for JournalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalKey(***)")
    }
}

impl JournalKey {
    /// Of a secret, which should have at least 32 bytes.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        match Hmac::<Sha256>::new_from_slice(secret) {
            Ok(mac) => Self(Arc::new(mac)),
            Err(_) => unreachable!("HMAC takes keys of any length"),
        }
    }

    /// The holder of the operator's token.
    #[must_use]
    pub fn operator(&self, name: &str) -> Author {
        Author {
            key: self.clone(),
            operator: cut(name, OPERATOR_CHARS_MAX),
            role: Role::Operate,
            reason: None,
        }
    }

    /// The configuration, at a start.
    #[must_use]
    pub fn config(&self) -> Author {
        Author { key: self.clone(), operator: "config".into(), role: Role::Config, reason: None }
    }

    /// Tells secrets apart without showing any: 16 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> String {
        let mut mac = Hmac::clone(&self.0);
        part(&mut mac, Some(KEY_ID));
        mac.finalize().into_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn mac(&self, record: &Record) -> Hmac<Sha256> {
        let mut mac = Hmac::clone(&self.0);
        part(&mut mac, Some(ROW));
        part(&mut mac, Some(&record.seq.to_be_bytes()));
        for text in [&record.at, &record.operator, &record.role, &record.action, &record.subject] {
            part(&mut mac, Some(text.as_bytes()));
        }
        for text in [&record.before, &record.after, &record.reason] {
            part(&mut mac, text.as_deref().map(str::as_bytes));
        }
        part(&mut mac, Some(record.prev_hash.as_bytes()));
        mac
    }
}

/// A field, with whether it is there and its length before it: no two rows are the same bytes.
fn part(mac: &mut Hmac<Sha256>, bytes: Option<&[u8]>) {
    mac.update(&[u8::from(bytes.is_some())]);
    let bytes = bytes.unwrap_or_default();
    mac.update(&(bytes.len() as u64).to_be_bytes());
    mac.update(bytes);
}

fn cut(text: &str, chars_max: usize) -> Box<str> {
    text.chars().take(chars_max).collect()
}

/// In whose name a change is made, and the secret for its row.
#[derive(Debug, Clone)]
pub struct Author {
    key: JournalKey,
    operator: Box<str>,
    role: Role,
    reason: Option<Box<str>>,
}

impl Author {
    /// The same, saying what for.
    #[must_use]
    pub fn because(self, reason: &str) -> Self {
        Self { reason: Some(cut(reason, REASON_CHARS_MAX)), ..self }
    }

    /// As rows name it.
    #[must_use]
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// What for.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The row behind `end`.
    ///
    /// # Errors
    /// [`ForeignKey`] when the chain is another secret's: it is not forked.
    pub(crate) fn record(
        &self,
        end: &ChainEnd,
        at: String,
        change: Change,
    ) -> Result<(Record, ChainEnd), ForeignKey> {
        let end = end.tied_to(&self.key)?;
        let mut record = Record {
            seq: end.head.seq + 1,
            at,
            operator: self.operator.to_string(),
            role: self.role.as_str().to_owned(),
            action: change.action.as_str().to_owned(),
            subject: change.subject,
            before: change.before.map(|json| json.to_string()),
            after: change.after.map(|json| json.to_string()),
            reason: self.reason().map(str::to_owned),
            prev_hash: end.head.hash.to_string(),
            hash: String::new(),
        };
        let hash = Hash(self.key.mac(&record).finalize().into_bytes().into());
        record.hash = hash.to_string();
        let end = ChainEnd { head: Head { seq: record.seq, hash }, ..end };
        Ok((record, end))
    }
}

/// What an author did.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) action: Action,
    pub(crate) subject: String,
    pub(crate) before: Option<serde_json::Value>,
    pub(crate) after: Option<serde_json::Value>,
}

/// The chain's end as the database keeps it, under the lock that makes changers take turns: `SEQ HASH KEY`, or `0` before a
/// secret is tied to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChainEnd {
    pub(crate) head: Head,
    key: Option<String>,
}

/// The chain is another secret's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its journal is chained under another secret (key {chained}) than this process's admin.journal_secret (key {given}): give \
     every process on this database the same admin.journal_secret; if the old one is lost, see \"The journal\" in docs/mysql.md"
)]
pub(crate) struct ForeignKey {
    chained: String,
    given: String,
}

impl ChainEnd {
    /// The same, tied to this key if it was tied to none.
    pub(crate) fn tied_to(&self, key: &JournalKey) -> Result<Self, ForeignKey> {
        let given = key.id();
        match &self.key {
            Some(chained) if *chained != given => Err(ForeignKey { chained: chained.clone(), given }),
            _ => Ok(Self { head: self.head, key: Some(given) }),
        }
    }
}

impl fmt::Display for ChainEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{} {key}", self.head),
            None => f.write_str("0"),
        }
    }
}

impl FromStr for ChainEnd {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        let mut words = text.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("0"), None, None) => Ok(Self { head: Head::default(), key: None }),
            (Some(seq), Some(hash), Some(key)) => Ok(Self {
                head: Head { seq: seq.parse().map_err(|_| NoHash)?, hash: hash.parse()? },
                key: Some(key.to_owned()),
            }),
            _ => Err(NoHash),
        }
    }
}

//! The orders database: the final truth of what was sold. Four ports by purpose and the registry beside them.
//!
//! [`sales`] what is on offer · [`intake`] promised orders become rows · [`life`] what happens to an order later ·
//! [`payments`] money that came in · [`refunds`] money that goes back · [`outbox`] what the ledger still has to hear · [`journal`] who
//! changed what · [`registry`] epoch and instances · [`witness`] which ledger they see · [`shares`] who drains · [`books`] sums for the
//! audit.
//!
//! Every adapter
//! - MUST carry out each method as one transaction: all of it or nothing; no transaction handle leaves the method;
//! - MUST have made durable whatever a method answers `Ok` for;
//! - MUST finish or undo a transaction whose caller went away, and MUST NOT spoil its connection by it;
//! - MUST serialise whatever changes `sold` of one sale under that sale's row, so that `sold = Σ units_held ≤ total`
//!   and the per-user limit hold whoever writes at the same time;
//! - MUST fit the orders of one [`intake`] batch first-fit in the order given, telling inserts from duplicates; an order id
//!   that has a row is never written again, whatever its content;
//! - MUST write an outbox row `release` in the very transaction that lowers `units_held` or inserts a rejected order, and
//!   delete it only through [`Database::releases_done`];
//! - MUST bump a sale's version with publish, restock, pause, resume and a changed end, never with `sold`, and write with each bump,
//!   in its transaction, the row of `floodgate_sale_versions` that says what the sale offers from then on; and MUST bump an order's
//!   version with every change of its row;
//! - MUST write an operator's change and its row in the [`journal`] in one transaction;
//! - MUST compare a published definition with the one first published, which restocks do not change;
//! - MUST take every written time, `pay_by` above all, from the database's own clock;
//! - MUST write ids and times as text (RFC 3339, UTC, milliseconds) and money in minor units;
//! - MUST answer [`DatabaseError::Unavailable`] only where repeating the same call is safe and may succeed (after a lost
//!   answer, too: every method may be repeated), and [`DatabaseError::Record`] only where the given data will always fail.

pub mod books;
pub mod intake;
pub mod journal;
pub mod life;
pub mod money;
#[cfg(feature = "mysql")]
pub mod mysql;
pub mod outbox;
pub mod payments;
pub mod refunds;
pub mod registry;
pub mod sales;
mod schema;
pub mod shares;
pub mod sqlite;
mod transitions;
pub mod witness;

use std::sync::Arc;

use stock::{Now, SaleId};

pub use books::{RejectedOrder, SaleBooks};
pub use intake::{Outcome, RejectReason, Settled};
pub use life::{By, CancelOutcome, CloseOutcome, Due, OrderRow, Standing};
pub use money::{MoneyRow, PaidOtherwise};
#[cfg(feature = "mysql")]
pub use mysql::mysql_schema_sql;
pub use payments::{Capture, Captured, Disposition, PaymentRow, RefundReason};
pub use refunds::{
    OVERDUE_MS, OpenRefunds, Part, RefundAsked, RefundBy, RefundHeard, RefundOutcome, RefundRow, RefundState,
    RefundTold, UnknownRefundState,
};
pub use registry::{ENGINE_DISK, Instance, LedgerChange};
pub use sales::{LIFTED_EPOCH, Published, SaleRow, SaleVersionRow};
pub use schema::SchemaState;
pub use shares::{Beat, LogBeat, Renewed, Share, Work};
pub use sqlite::{Executor, SharedConnection, StockClaim, schema_sql};
pub use transitions::CloseCause;
pub use witness::{Ahead, Begun, Life, Sight, WITNESS_MAX_MS, Witness};

#[cfg(feature = "mysql")]
use mysql::MysqlDatabase;
use sqlite::SqliteDatabase;

/// The orders database behind its ports. Cheap to clone.
#[derive(Clone)]
pub enum Database {
    /// Embedded: one file in WAL mode.
    Sqlite(Arc<SqliteDatabase>),
    /// MySQL or MariaDB: a server that many processes share.
    #[cfg(feature = "mysql")]
    Mysql(Arc<MysqlDatabase>),
}

/// What a call on the database can meet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// Out of reach, busy, full, or the answer was lost: repeat the call.
    #[error("the orders database is not available: {0}")]
    Unavailable(String),
    /// The database refuses this data and will refuse it again. Nothing was written.
    #[error("the orders database refuses this record: {0}")]
    Record(String),
    /// Tables are missing or of another version. Nothing was written.
    #[error("the orders database's tables do not fit: {0}")]
    Schema(String),
    /// Damaged, or not ours: somebody has to look.
    #[error("the orders database cannot be used: {0}")]
    Broken(String),
    /// No such sale. Nothing was written.
    #[error("the orders database has no sale {0}; `floodgate sales list` shows those that it has")]
    UnknownSale(SaleId),
    /// The restock id was used before, with another number of units. Nothing was written.
    #[error(
        "restock {restock_id} of sale {sale} was recorded with {recorded} units, not {asked}: use a new restock id"
    )]
    RestockDiffers {
        /// Which sale.
        sale: SaleId,
        /// As given.
        restock_id: String,
        /// Units of the first call.
        recorded: u32,
        /// Units of this call.
        asked: u32,
    },
    /// The caller asks for what can never be (0 units, a total beyond 2³² − 1). Nothing was written.
    #[error("{0}")]
    Invalid(String),
}

impl DatabaseError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether it is the given data that fails: a batch is then searched for the record at fault.
    #[must_use]
    pub fn is_of_the_record(&self) -> bool {
        matches!(self, Self::Record(_))
    }
}

impl Database {
    /// Opens `sqlite://PATH`, `sqlite:PATH` or a plain path; the file and its directory are made if absent, its tables are
    /// brought up to date (each version in a transaction of its own). `now` is the database's clock.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] or [`DatabaseError::Broken`] when the file cannot be opened, [`DatabaseError::Schema`]
    /// when a newer process made it.
    pub fn open_sqlite(url: &str, executor: Executor, now: Now) -> Result<Self, DatabaseError> {
        SqliteDatabase::open(url, executor, now).map(|sqlite| Self::Sqlite(Arc::new(sqlite)))
    }

    /// Runs inline on a connection that outlives this value, as a database server outlives its clients.
    ///
    /// # Errors
    /// As [`Self::open_sqlite`].
    pub fn over_connection(connection: SharedConnection, now: Now) -> Result<Self, DatabaseError> {
        SqliteDatabase::over(connection, now).map(|sqlite| Self::Sqlite(Arc::new(sqlite)))
    }

    /// How the tables in the file stand to this program; changes nothing, not even an absent file.
    ///
    /// # Errors
    /// As [`Self::open_sqlite`].
    pub fn check_sqlite(url: &str) -> Result<SchemaState, DatabaseError> {
        SqliteDatabase::check(url)
    }

    /// Brings the tables in the file up to date; answers with the versions applied.
    ///
    /// # Errors
    /// As [`Self::open_sqlite`].
    pub fn migrate_sqlite(url: &str) -> Result<Vec<u32>, DatabaseError> {
        SqliteDatabase::migrate(url)
    }
}

#[cfg(feature = "mysql")]
impl Database {
    /// Connects to `mysql://USER:PASSWORD@HOST:PORT/DATABASE`. Its tables must be there already; nothing is changed.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] while the server is out of reach, [`DatabaseError::Schema`] when the tables do not fit,
    /// [`DatabaseError::Broken`] when the address or the user's rights do not. None shows the password.
    pub async fn open_mysql(url: &str) -> Result<Self, DatabaseError> {
        MysqlDatabase::open(url, None).await.map(|mysql| Self::Mysql(Arc::new(mysql)))
    }

    /// For tests: the same, but before each transaction the clock of the server's session is set to `now` (`SET TIMESTAMP`), so
    /// that the written times still come from the server.
    ///
    /// # Errors
    /// As [`Self::open_mysql`].
    pub async fn open_mysql_at(url: &str, now: Now) -> Result<Self, DatabaseError> {
        MysqlDatabase::open(url, Some(now)).await.map(|mysql| Self::Mysql(Arc::new(mysql)))
    }

    /// How the tables stand to this program; changes nothing.
    ///
    /// # Errors
    /// As [`Self::open_mysql`].
    pub async fn check_mysql(url: &str) -> Result<SchemaState, DatabaseError> {
        mysql::check(url).await
    }

    /// Brings the tables up to date; answers with the versions applied. May be repeated after a crash at any point.
    ///
    /// # Errors
    /// As [`Self::open_mysql`].
    pub async fn migrate_mysql(url: &str) -> Result<Vec<u32>, DatabaseError> {
        mysql::migrate(url).await
    }
}

/// Hands each method to the adapter.
macro_rules! adapter {
    ($self:ident, $database:ident => $call:expr) => {
        match $self {
            Database::Sqlite($database) => $call,
            #[cfg(feature = "mysql")]
            Database::Mysql($database) => $call,
        }
    };
}
use adapter;

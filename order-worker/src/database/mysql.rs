//! The orders database in MySQL or MariaDB, through mysql_async.
//!
//! Whatever changes a sale locks its row (several in the order of their ids), everything that is read to decide is read behind that lock, and the
//! writes travel together with COMMIT in one packet. Order ids are told from duplicates by the primary
//! key alone: a batch is inserted as if it were new; only if the server says 1062 are the rows looked up. So nothing depends on `INSERT
//! IGNORE`, which hides other errors, nor on `RETURNING`, which MySQL has not.

mod books;
mod fault;
mod intake;
mod journal;
mod life;
mod money;
mod outbox;
mod payments;
mod pool;
mod quick;
mod refunds;
mod registry;
mod sales;
mod schema;
mod session;
mod shares;
mod sql;
mod transitions;
mod witness;

use std::sync::Arc;

use stock::Now;
use tokio::sync::Notify;

pub use schema::mysql_schema_sql;
pub(super) use schema::{check, migrate};

use super::DatabaseError;
use fault::Fault;
use pool::Pool;
use quick::Known;
use session::{Purpose, Server, Session};

/// The adapter; see [`super::Database`] for what each method promises.
pub struct MysqlDatabase {
    pool: Pool,
    release_written: Notify,
    known: Arc<Known>,
}

impl MysqlDatabase {
    /// Changes nothing.
    pub(super) async fn open(url: &str, clock: Option<Now>) -> Result<Self, DatabaseError> {
        let server = Server::new(url, clock)?;
        schema::verify(&server).await?;
        Ok(Self { pool: Pool::start(&server)?, release_written: Notify::new(), known: Arc::default() })
    }

    pub(super) async fn release_written(&self) {
        self.release_written.notified().await;
    }

    /// One writing transaction, which `work` ends by a commit; without one, or on any fault, nothing was written.
    ///
    /// A lost answer to a COMMIT is `Unavailable`: the caller's repetition finds what it wrote, since each method can be repeated.
    async fn write<T: Send + 'static>(
        &self,
        work: impl AsyncFn(&mut Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        self.pool.run(Purpose::Write, work).await
    }

    /// Reads, each statement of the moment when it is carried out.
    async fn read<T: Send + 'static>(
        &self,
        work: impl AsyncFn(&mut Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        self.pool.run(Purpose::Read, work).await
    }
}

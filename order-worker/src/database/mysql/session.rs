//! One connection with everything set that a transaction relies on. Knows nothing of tables but the marker of [`Session::commit_found`].

use std::fmt::Write;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder};
use stock::{Now, Timestamp};

use super::fault::Fault;
use super::sql::Answers;
use crate::database::DatabaseError;

/// TCP, greeting, login and settings together.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Until a ROLLBACK is answered; after that the connection is thrown away, which rolls back too.
const ROLLBACK_MAX: Duration = Duration::from_secs(2);
/// Until a farewell is sent.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Transactions under a sale's row.
    ///
    /// READ COMMITTED: what is read after a lock was waited for is what the one who had it left (a snapshot taken before would be older,
    /// and the per-user limit counted on it wrong), and neither absent rows nor gaps are locked, so that writers of different
    /// sales never meet.
    Write,
    /// Single statements that change nothing.
    Read,
    /// Sums over every order: one snapshot for all of them.
    Sums,
    /// DDL: as long as it takes.
    Migrate,
}

impl Purpose {
    /// How long one attempt at a transaction may take, all of its statements together.
    pub(super) fn attempt_max(self) -> Duration {
        match self {
            Self::Write => Duration::from_secs(8),
            Self::Read => Duration::from_secs(5),
            Self::Sums => Duration::from_secs(120),
            Self::Migrate => Duration::from_secs(3_600),
        }
    }

    fn begin(self) -> &'static str {
        match self {
            Self::Write | Self::Read | Self::Migrate => "START TRANSACTION;",
            Self::Sums => "START TRANSACTION WITH CONSISTENT SNAPSHOT;",
        }
    }

    /// Strict, so that what does not fit is an error and never cut off.
    ///
    /// Sums are ended by the server itself, a second before we give up, so that none goes on for nobody. What else we give up ends soon
    /// by itself, for no lock is waited for longer than 3 s.
    fn settings(self) -> String {
        let (isolation, access) = match self {
            Self::Write | Self::Migrate => ("READ COMMITTED", "READ WRITE"),
            Self::Read | Self::Sums => ("REPEATABLE READ", "READ ONLY"),
        };
        let within = match self {
            Self::Sums => {
                let seconds = self.attempt_max().as_secs() - 1;
                format!(
                    "/*M!100200 , max_statement_time = {seconds} */ /*!80000 , max_execution_time = {seconds}000 */"
                )
            }
            Self::Write | Self::Read | Self::Migrate => String::new(),
        };
        format!(
            "SET NAMES utf8mb4;
             SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', autocommit = 1,
                 innodb_lock_wait_timeout = 3, lock_wait_timeout = 5, eq_range_index_dive_limit = 1 {within};
             SET SESSION TRANSACTION ISOLATION LEVEL {isolation};
             SET SESSION TRANSACTION {access};"
        )
    }
}

/// Where to connect, and the clock that tests put in place of the server's.
#[derive(Clone)]
pub(super) struct Server {
    opts: Opts,
    clock: Option<Now>,
}

impl Server {
    pub(super) fn new(url: &str, clock: Option<Now>) -> Result<Self, DatabaseError> {
        // The driver's own words may repeat a part of the address, and so of the password.
        let wrong = || {
            DatabaseError::Broken(
                "orders.database_url is no address of a MySQL database: write mysql://USER:PASSWORD@HOST:PORT/DATABASE, with \
                 characters such as @ : / ? # % in the password as %40 %3A %2F %3F %23 %25, and without TLS options, which are not \
                 compiled in"
                    .into(),
            )
        };
        let opts = Opts::from_url(url).map_err(|_| wrong())?;
        if opts.db_name().is_none_or(str::is_empty) {
            return Err(wrong());
        }
        // Where the address says, not through a socket that the server mentions: it may be another machine's path.
        let opts = OptsBuilder::from_opts(opts).prefer_socket(false).stmt_cache_size(0).tcp_nodelay(true);
        let opts = opts.tcp_keepalive(Some(Duration::from_secs(10)));
        Ok(Self { opts: opts.into(), clock })
    }

    pub(super) async fn connect(&self, purpose: Purpose) -> Result<Session, Fault> {
        let connect = async {
            let mut connection = Conn::new(self.opts.clone()).await?;
            connection.query_drop(purpose.settings()).await?;
            Ok::<_, mysql_async::Error>(connection)
        };
        match tokio::time::timeout(CONNECT_MAX, connect).await {
            Ok(connection) => Ok(Session {
                connection: connection?,
                begin: purpose.begin(),
                clock: self.clock.clone(),
                is_open: false,
                is_committing: false,
            }),
            Err(_) => Err(Fault::Lost(format!("no connection within {} s", CONNECT_MAX.as_secs()))),
        }
    }
}

/// One connection. Whoever gives it back has called [`Self::reset`].
pub(super) struct Session {
    connection: Conn,
    begin: &'static str,
    clock: Option<Now>,
    /// A transaction is open.
    is_open: bool,
    /// A COMMIT was sent and not refused: without an answer it may have happened.
    is_committing: bool,
}

/// Asks the server's clock, in milliseconds; behind a lock that is waited for, so that the answer is of the time after it.
pub(super) const NOW: &str = "SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS UNSIGNED);";

impl Session {
    /// Statements that are no part of a transaction, or of one that they begin and end themselves.
    pub(super) async fn ask(&mut self, statements: &str) -> Result<Answers, Fault> {
        Ok(Answers::new(self.run(statements, 0).await?))
    }

    /// Statements of the transaction, which the first ones begin.
    pub(super) async fn transact(&mut self, statements: &str) -> Result<Answers, Fault> {
        if self.is_open {
            return self.ask(statements).await;
        }
        self.is_open = true;
        let (begin, skip) = match &self.clock {
            Some(clock) => {
                let now = clock();
                (format!("SET TIMESTAMP = {}.{:03};{}", now / 1_000, now % 1_000, self.begin), 2)
            }
            None => (self.begin.to_owned(), 1),
        };
        Ok(Answers::new(self.run(&(begin + statements), skip).await?))
    }

    /// The last statements of the transaction, and its end, in one packet: the server stops at the first that fails, and then
    /// does not commit.
    pub(super) async fn commit(&mut self, mut statements: String) -> Result<(), Fault> {
        // A crash before the server has carried out COMMIT leaves nothing; after it everything, durable, perhaps without an answer.
        statements.push_str("COMMIT;");
        self.is_committing = true;
        let done = self.transact(&statements).await;
        if !matches!(done, Err(Fault::Lost(_))) {
            self.is_committing = false;
        }
        done?;
        self.is_open = false;
        Ok(())
    }

    /// A whole transaction in one packet, which MUST be harmless to repeat: without an answer nobody knows whether it happened, and a
    /// connection that died while it was idle is not told from one that died of it.
    pub(super) async fn at_once(&mut self, statements: String) -> Result<Answers, Fault> {
        let answers = self.transact(&(statements + "COMMIT;")).await?;
        self.is_open = false;
        Ok(answers)
    }

    /// Undoes what the transaction has done, and ends it.
    pub(super) async fn roll_back(&mut self) -> Result<(), Fault> {
        self.ask("ROLLBACK;").await?;
        self.is_open = false;
        Ok(())
    }

    /// Ends a transaction that found everything as it should be, written by somebody else. InnoDB shows a row as soon as its transaction
    /// is committed in memory, before that is on disk: only a flush of our own makes durable what we answer for. A transaction that
    /// wrote nothing flushes nothing, hence the marker.
    pub(super) async fn commit_found(&mut self) -> Result<(), Fault> {
        let mark = "UPDATE floodgate_meta SET value = value + 1 WHERE name = 'flushes';";
        self.commit(mark.to_owned()).await
    }

    pub(super) fn is_committing(&self) -> bool {
        self.is_committing
    }

    /// Ends what is open, so that the next caller finds nothing of this one. `None`: the connection is gone, and so is what was open.
    pub(super) async fn reset(mut self) -> Option<Self> {
        if self.is_open {
            let rolled_back =
                tokio::time::timeout(ROLLBACK_MAX, self.connection.query_drop("ROLLBACK")).await;
            if !matches!(rolled_back, Ok(Ok(()))) {
                self.throw_away();
                return None;
            }
            self.is_open = false;
        }
        self.is_committing = false;
        Some(self)
    }

    /// Closes the socket at once, whatever the server is doing: it rolls back when it notices.
    pub(super) fn throw_away(self) {
        let connection = self.connection;
        // Inside a runtime the driver would start a task that first reads the answers still to come: from a server that hangs, for
        // ever. A thread without a runtime just closes. Where none can be started the task must do.
        let _ = std::thread::Builder::new().name("mysql-close".into()).spawn(move || drop(connection));
    }

    /// Says farewell.
    pub(super) async fn close(self) {
        let _ = tokio::time::timeout(CLOSE_MAX, self.connection.disconnect()).await;
    }

    /// The rows of each statement but the first `skip`.
    async fn run(&mut self, statements: &str, skip: usize) -> Result<Vec<Vec<mysql_async::Row>>, Fault> {
        let mut result = self.connection.query_iter(statements).await?;
        let (mut answers, mut answered) = (Vec::new(), 0);
        // A statement without rows has no columns, the end has not even that.
        while result.columns().is_some() {
            let rows = result.collect().await?;
            answered += 1;
            if answered > skip {
                answers.push(rows);
            }
        }
        // An error of any statement but the first has no columns either; only this tells it from the end.
        result.drop_result().await?;
        Ok(answers)
    }
}

/// The time that [`NOW`] answered with.
pub(super) fn now(answers: &mut Answers) -> Result<Timestamp, Fault> {
    answers.value().map(Timestamp)
}

/// `SELECT` statements over `items` in parts that the server's optimiser still takes as they are.
pub(super) fn in_parts<T>(items: &[T], mut select: impl FnMut(&[T]) -> String) -> String {
    let mut statements = String::new();
    for part in items.chunks(IN_LIST_MAX) {
        // Writing into a String does not fail.
        let _ = write!(statements, "{}", select(part));
    }
    statements
}

/// MariaDB turns a list of 1,000 into a temporary table.
const IN_LIST_MAX: usize = 512;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use testbed::MariaDb;

    use super::*;

    #[tokio::test]
    async fn a_sum_is_ended_by_the_server_before_we_give_up() {
        let server = MariaDb::start().unwrap();
        let url = server.url("sums").unwrap();
        let mut session = Server::new(&url, None).unwrap().connect(Purpose::Sums).await.unwrap();
        let mut allowed = session.ask("SELECT CAST(@@max_statement_time AS UNSIGNED);").await.unwrap();
        let allowed = Duration::from_secs(allowed.value().unwrap());
        assert!(!allowed.is_zero() && allowed < Purpose::Sums.attempt_max(), "{allowed:?}");

        session.ask("SET SESSION max_statement_time = 0.05;").await.unwrap();
        let ended = session
            .transact("SELECT COUNT(*) FROM seq_1_to_1000000000000 WHERE seq % 7 = 9;")
            .await
            .map(|_| ());
        assert!(
            matches!(&ended, Err(Fault::Final(error @ DatabaseError::Unavailable(_))) if error.to_string().contains("1969")),
            "{ended:?}"
        );
        assert!(!server.sql("", "SHOW PROCESSLIST").unwrap().contains("seq_1_to"), "it goes on");
        session.close().await;
    }
}

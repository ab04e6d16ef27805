//! Where SQLite's blocking calls run: on threads of their own in production, inline in a simulation.
//!
//! Two threads: status reads never wait behind the writer's sync (WAL: readers do not block, and see every commit that was
//! answered before they began). A caller that goes away takes nothing with it: its job was handed over whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::DatabaseError;

/// Where SQLite's blocking calls run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// On one writing and one reading thread.
    Thread,
    /// In the caller's own thread: for a simulation, and for commands that do one thing.
    Inline,
}

/// A connection that can outlive the [`super::Database`] on top of it. Cheap to clone.
#[derive(Clone)]
pub struct SharedConnection(Arc<Mutex<Connection>>);

impl SharedConnection {
    /// Opens a file, or `:memory:`.
    ///
    /// # Errors
    /// As [`super::Database::open_sqlite`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DatabaseError> {
        connect(path.as_ref()).map(|connection| Self(Arc::new(Mutex::new(connection))))
    }

    /// Runs one piece of work on the bare connection: for tests that look at the tables or spoil them.
    pub fn with<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> T {
        work(&mut self.0.lock())
    }
}

/// Jobs that wait for a thread; callers beyond wait in their own futures.
const JOBS_MAX: usize = 64;
/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Prepared statements kept; more than this crate has.
const STATEMENTS_MAX: usize = 64;
/// Page cache of one connection.
const CACHE_KIB: i64 = 64 * 1024;
/// 32 MiB of WAL: index pages that are touched again and again reach the file once for many commits.
const CHECKPOINT_PAGES: i64 = 8 * 1024;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

pub(super) enum Lanes {
    Threads { write: mpsc::Sender<Job>, read: mpsc::Sender<Job> },
    Inline(SharedConnection),
}

#[derive(Clone, Copy)]
pub(super) enum Lane {
    Write,
    Read,
}

impl Lanes {
    pub(super) fn threads(path: &Path) -> Result<Self, DatabaseError> {
        if path == Path::new(":memory:") {
            return Err(DatabaseError::Broken(
                "an in-memory database forgets every order when the process ends: give database_url a file"
                    .into(),
            ));
        }
        Ok(Self::Threads { write: thread("orders-write", path)?, read: thread("orders-read", path)? })
    }

    /// Runs `work` where this executor runs work, whole, even when the returned future is dropped once it was handed over.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Connection) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (write, read) = match self {
            Self::Inline(connection) => return connection.with(work),
            Self::Threads { write, read } => (write, read),
        };
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: the work is done all the same.
            let _ = answer.send(work(connection));
        });
        let gone = || DatabaseError::Unavailable("its thread has ended".into());
        let jobs = match lane {
            Lane::Write => write,
            Lane::Read => read,
        };
        jobs.send(job).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// A thread with its own connection; it ends when the last sender is dropped.
fn thread(name: &str, path: &Path) -> Result<mpsc::Sender<Job>, DatabaseError> {
    let (jobs, mut queued) = mpsc::channel::<Job>(JOBS_MAX);
    let mut connection = connect(path)?;
    let serve = move || {
        while let Some(job) = queued.blocking_recv() {
            job(&mut connection);
        }
    };
    let spawned = std::thread::Builder::new().name(name.into()).spawn(serve);
    spawned
        .map(|_| jobs)
        .map_err(|error| DatabaseError::Unavailable(format!("no thread could be started: {error}")))
}

fn connect(path: &Path) -> Result<Connection, DatabaseError> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(|error| {
            DatabaseError::Broken(format!(
                "its directory {} cannot be made ({error}): change its rights or orders.database_url",
                directory.display()
            ))
        })?;
    }
    let connection = Connection::open(path).map_err(|error| {
        DatabaseError::Broken(format!(
            "{} cannot be opened ({error}): change its rights or orders.database_url",
            path.display()
        ))
    })?;
    prepare(&connection).map_err(|error| named(path, error))?;
    Ok(connection)
}

/// What is no database shows with the first statement, in words that do not say which file it is.
fn named(path: &Path, error: rusqlite::Error) -> DatabaseError {
    match error.into() {
        DatabaseError::Broken(text) => DatabaseError::Broken(format!(
            "{}: {text}: set orders.database_url to an SQLite file, or to one that is not there yet",
            path.display()
        )),
        error => error,
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // FULL syncs the WAL at every commit: what was answered survives a power cut.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)
}

/// The path in `sqlite://PATH`, `sqlite:PATH` or a plain path.
pub(super) fn path_of(url: &str) -> PathBuf {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
    PathBuf::from(path)
}

//! Where SQLite's blocking calls run: on threads of their own in production, inline in a simulation.
//!
//! Three threads: status reads wait neither behind the writer's sync (WAL: readers do not block, and see every commit that was
//! answered before they began) nor behind sums over all orders of a sale. A caller that goes away takes nothing with it: its job was handed over whole. Nothing is written
//! to or read from a file that is no longer where it was opened: whoever starts next would not find it.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
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
    /// On one writing and two reading threads.
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
const STATEMENTS_MAX: usize = 96;
/// Page cache of one connection.
const CACHE_KIB: i64 = 64 * 1024;
/// 32 MiB of WAL: index pages that are touched again and again reach the file once for many commits.
const CHECKPOINT_PAGES: i64 = 8 * 1024;

type Job = Box<dyn FnOnce(Result<&mut Connection, DatabaseError>) + Send>;

pub(super) enum Lanes {
    Threads { write: mpsc::Sender<Job>, read: mpsc::Sender<Job>, sum: mpsc::Sender<Job> },
    Inline(SharedConnection),
}

#[derive(Clone, Copy)]
pub(super) enum Lane {
    Write,
    Read,
    /// For what reads every order of a sale, which takes seconds where there are millions.
    Sum,
}

impl Lanes {
    pub(super) fn threads(path: &Path) -> Result<Self, DatabaseError> {
        if path == Path::new(":memory:") {
            return Err(DatabaseError::Broken(
                "an in-memory database forgets every order when the process ends: give database_url a file"
                    .into(),
            ));
        }
        Ok(Self::Threads {
            write: thread("orders-write", path)?,
            read: thread("orders-read", path)?,
            sum: thread("orders-sum", path)?,
        })
    }

    /// Runs `work` where this executor runs work, whole, even when the returned future is dropped once it was handed over.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce(&mut Connection) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, DatabaseError> {
        let (write, read, sum) = match self {
            Self::Inline(connection) => return connection.with(work),
            Self::Threads { write, read, sum } => (write, read, sum),
        };
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody waits any more: the work is done all the same.
            let _ = answer.send(connection.and_then(work));
        });
        let gone = || DatabaseError::Unavailable("its thread has ended".into());
        let jobs = match lane {
            Lane::Write => write,
            Lane::Read => read,
            Lane::Sum => sum,
        };
        jobs.send(job).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// A thread with its own connection; it ends when the last sender is dropped.
fn thread(name: &str, path: &Path) -> Result<mpsc::Sender<Job>, DatabaseError> {
    let (jobs, mut queued) = mpsc::channel::<Job>(JOBS_MAX);
    let mut connection = connect(path)?;
    let place = Place::of(path)?;
    let serve = move || {
        while let Some(job) = queued.blocking_recv() {
            job(place.check().map(|()| &mut connection));
        }
    };
    let spawned = std::thread::Builder::new().name(name.into()).spawn(serve);
    spawned
        .map(|_| jobs)
        .map_err(|error| DatabaseError::Unavailable(format!("no thread could be started: {error}")))
}

/// Which file a connection has open.
struct Place {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl Place {
    fn of(path: &Path) -> Result<Self, DatabaseError> {
        let found = std::fs::metadata(path)
            .map_err(|error| DatabaseError::Unavailable(format!("{}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), device_and_inode: (found.dev(), found.ino()) })
    }

    /// Whether the file is still there. One that was put back serves on.
    fn check(&self) -> Result<(), DatabaseError> {
        let is_it = match std::fs::metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) == self.device_and_inode,
            // Of anything else the statement itself tells.
            Err(error) => error.kind() != ErrorKind::NotFound,
        };
        if is_it {
            return Ok(());
        }
        Err(DatabaseError::Unavailable(format!(
            "{} was moved, removed or exchanged while this process had it open, and what is written now would be lost: put \
             that very file back, or stop the process before you put another one there",
            self.path.display()
        )))
    }
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

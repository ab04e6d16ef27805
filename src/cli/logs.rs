//! The registered logs as far as they are on this machine: what waits there. Only what is promised and not yet in the database
//! says whether a shop is at rest: a log without promises holds up nothing.

use std::path::Path;

use order_worker::database::Instance;
use order_worker::{DRAIN_GROUP, Database, ORDERS_TOPIC};
use queue::QueueError;
use serde::Serialize;

use super::Failure;
use crate::{clock, engines};

/// One registered log.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Log {
    /// Its id, hexadecimal: what `ledger rebuild --without` takes.
    pub(super) instance: String,
    pub(super) place: String,
    /// Whether it may hold promises; a worker's log never does.
    pub(super) holds_promises: bool,
    /// Records that wait: promised orders that are not rows yet, or what else a worker keeps there; none when the log is out of
    /// reach.
    pub(super) backlog: Option<u64>,
    /// Why it is.
    pub(super) trouble: Option<String>,
}

/// All that the registry names.
pub(super) async fn registered(database: &Database) -> Result<Vec<Log>, Failure> {
    Ok(database.instances().await?.into_iter().map(look_at).collect())
}

/// The sum of what is promised, if every log that may hold promises could be read.
pub(super) fn backlog(logs: &[Log]) -> Option<u64> {
    logs.iter().filter(|log| log.holds_promises).map(|log| log.backlog).sum()
}

fn look_at(instance: Instance) -> Log {
    let read = read(&instance);
    Log {
        instance: instance.owner.to_string(),
        holds_promises: instance.holds_promises,
        place: instance.place,
        backlog: read.as_ref().ok().copied(),
        trouble: read.err(),
    }
}

fn read(instance: &Instance) -> Result<u64, String> {
    // A registry may name the machine before the directory.
    let directory = instance.place.split_once(':').map_or(instance.place.as_str(), |(_, path)| path);
    let queue = engines::attach_source(Path::new(directory), clock::system())
        .map_err(|error| format!("out of reach from here: {error}"))?;
    if queue.instance() != instance.owner.0 {
        return Err("another log is in its directory now".into());
    }
    if !instance.holds_promises {
        let lags = queue::operator::groups(&queue).map_err(|error| error.to_string())?;
        return Ok(lags.iter().map(|group| group.lag.records).sum());
    }
    match queue.topic(ORDERS_TOPIC).and_then(|orders| orders.lag(DRAIN_GROUP)) {
        Ok(lag) => Ok(lag.records),
        // Nothing was ever appended, or nobody has ever drained: then nothing is known to be finished.
        Err(QueueError::UnknownTopic(_)) => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

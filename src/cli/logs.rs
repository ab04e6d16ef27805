//! The registered logs as far as they are on this machine: what waits there. Only what is promised and not yet in the database
//! says whether a shop is at rest: a log without promises holds up nothing.

use order_worker::database::Instance;
use order_worker::membership::log_at;
use order_worker::{DRAIN_GROUP, Database, ORDERS_TOPIC};
use queue::{Queue, QueueError, Topic};
use serde::Serialize;
use stock::Owner;

use super::Failure;
use crate::clock;

/// One registered log.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Log {
    /// Its id, hexadecimal: what `ledger rebuild --without` takes.
    pub(super) instance: String,
    pub(super) place: String,
    /// Whether it may hold promises; a worker's log never does.
    pub(super) holds_promises: bool,
    /// Whether a rebuild went on without it, and it has not been back since.
    pub(super) left_out: bool,
    /// Records that wait: promised orders that are not rows yet, or what else a worker keeps there; none when the log is out of
    /// reach.
    pub(super) backlog: Option<u64>,
    /// Why it is.
    pub(super) trouble: Option<String>,
    /// Its promises, where there have been any.
    #[serde(skip)]
    pub(super) orders: Option<(Owner, Topic)>,
}

/// What is read of a log.
#[derive(Default)]
struct Read {
    backlog: u64,
    orders: Option<Topic>,
}

/// All that the registry names.
pub(super) async fn registered(database: &Database) -> Result<Vec<Log>, Failure> {
    let mut logs = Vec::new();
    for instance in database.instances().await? {
        logs.push(look_at(instance).await);
    }
    Ok(logs)
}

/// The sum of what is promised, if every log that may hold promises could be read, left-out logs aside.
pub(super) fn backlog(logs: &[Log]) -> Option<u64> {
    logs.iter().filter(|log| log.holds_promises && !log.left_out).map(|log| log.backlog).sum()
}

/// Those that may hold promises and cannot be read, and why; left-out logs aside.
pub(super) fn out_of_reach(logs: &[Log]) -> Vec<String> {
    let promising = logs.iter().filter(|log| log.holds_promises && !log.left_out);
    promising.filter_map(|log| Some(format!("{}: {}", log.place, log.trouble.as_ref()?))).collect()
}

async fn look_at(instance: Instance) -> Log {
    let read = read(&instance).await;
    Log {
        instance: instance.owner.to_string(),
        holds_promises: instance.holds_promises,
        left_out: instance.left_out,
        place: instance.place,
        backlog: read.as_ref().ok().map(|read| read.backlog),
        trouble: read.as_ref().err().cloned(),
        orders: read.ok().and_then(|read| Some((instance.owner, read.orders?))),
    }
}

async fn read(instance: &Instance) -> Result<Read, String> {
    let log = log_at(&instance.place).ok_or("its place names no log")?;
    let queue = Queue::attach(&log, clock::system())
        .await
        .map_err(|error| format!("out of reach from here: {error}"))?;
    if queue.instance() != instance.owner.0 {
        return Err("another log is in its directory now".into());
    }
    let told = |error: QueueError| error.to_string();
    if !instance.holds_promises {
        let lags = queue::operator::groups(&queue).await.map_err(told)?;
        return Ok(Read { backlog: lags.iter().map(|group| group.lag.records).sum(), orders: None });
    }
    let orders = match queue.topic(ORDERS_TOPIC).await {
        // Nothing was ever appended.
        Err(QueueError::UnknownTopic(_)) => return Ok(Read::default()),
        orders => orders.map_err(told)?,
    };
    let backlog = orders.lag(DRAIN_GROUP).await.map_err(told)?.records;
    Ok(Read { backlog, orders: Some(orders) })
}

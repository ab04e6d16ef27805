//! The three roles: everything in one process, a gateway, a worker. Each is a linear story in a file of its own, told with the
//! same parts; read [`all_in_one`] first.
//!
//! Start: what processes share (database, ledger, flag) → own log → sales published → ledger complete → drain → buyers. Nobody
//! is answered before the ledger is complete, so nobody is answered from half a memory.
//!
//! Shutdown, the reverse: the gateway lets go of its buyers and finishes what it reserved; the drain ends its batch; the log
//! settles what is in its ring, still locked; only then is its lag read, and the instance leaves the registry if the log owes
//! nothing; the locks go last, since whoever takes them next registers anew.

mod all_in_one;
mod background;
mod buyers;
mod closing;
mod gateway;
mod probes;
mod publish;
mod signals;
mod start_error;
mod worker;
mod worker_thread;

use std::sync::Arc;

use order_worker::membership::{logs_on_this_machine, place_of};
use order_worker::{
    Database, Instance, InstanceParts, Member, MemberParts, MemberRow, MembershipMetrics, OwnLog,
};
use prometheus_client::registry::Registry;
use queue::Queue;
use stock::{DeploymentId, Now, Stock};

use crate::config::{Config, Role};
use crate::engines;
pub(crate) use start_error::StartError;

/// Runs until SIGTERM or SIGINT, or until a part that nothing works without has stopped.
pub(crate) async fn run(role: Role, config: Config) -> Result<(), StartError> {
    config.check_role(role)?;
    engines::raise_open_files_limit();
    match role {
        Role::AllInOne => all_in_one::run(config).await,
        Role::Gateway => gateway::run(config).await,
        Role::Worker => worker::run(config).await,
    }
}

/// What every role stands on, and processes may share. Cheap to clone.
#[derive(Clone)]
struct Foundation {
    now: Now,
    database: Database,
    stock: Arc<Stock>,
}

impl Foundation {
    /// This process's part among those on its ledger. `own`: the log that it sells into; `row`: its row in the registry.
    fn member(
        &self,
        config: &Config,
        (own, row): (Option<OwnLog>, MemberRow),
        registry: &mut Registry,
    ) -> Member {
        Member::new(MemberParts {
            database: self.database.clone(),
            stock: self.stock.clone(),
            own,
            row,
            logs: logs_on_this_machine(&config.queue, self.now.clone()),
            outliving: engines::ledger_outlives(config),
            metrics: MembershipMetrics::new(registry),
        })
    }
}

/// The log in `queue.directory`, opened as its one owner, tied to the orders database and registered there.
async fn open_instance(
    config: &Config,
    now: &Now,
    (database, deployment): (&Database, DeploymentId),
    registry: &mut Registry,
) -> Result<Instance, StartError> {
    let parts = InstanceParts {
        database: database.clone(),
        deployment,
        database_shown: config.orders.database_url.to_string(),
        place: place_of(&config.queue.own_log()),
        outliving: engines::ledger_outlives(config),
        shared: engines::is_shared(config),
    };
    // A log that is not there yet, or in which something is wrong: the open tells.
    let beside = Queue::attach(&config.queue.own_log(), now.clone()).await.ok();
    let instance =
        Instance::open(parts, beside, || engines::open_queue(config, now.clone(), registry)).await?;
    registry.register_collector(Box::new(order_worker::BacklogMetrics(instance.drained.clone())));
    Ok(instance)
}

//! One gateway among several: its own log, a ledger and a database that it shares. Workers drain its log.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::buyers::Buyers;
use super::signals;
use super::{Foundation, StartError, open_instance, publish};
use crate::config::Config;
use crate::entropy::random;
use crate::{clock, engines};

pub(super) async fn run(mut config: Config) -> Result<(), StartError> {
    config.complete_secrets()?;
    let now = clock::system();
    let mut registry = Registry::default();

    // 1. What processes share, and this one's own log.
    let database = engines::open_database(&config, now.clone()).await?;
    let deployment = engines::deployment(&database).await?;
    let instance = open_instance(&config, &now, (&database, deployment), &mut registry).await?;
    instance.prepare_for_workers().await?;
    let journal = publish::journal(&config, &database).await?;
    publish::configured_sales(&config, &database, &journal.config(), None).await?;

    // 2. The ledger, which others may have completed long ago.
    let stock =
        Arc::new(engines::open_stock(&config, deployment, now.clone(), random(), &mut registry).await?);
    let foundation = Foundation { now, database, stock };
    let mut member = foundation.member(&config, instance.member(), &mut registry);
    member.start().await?;
    let (stop, stopping) = watch::channel(false);
    let membership = tokio::spawn(async move { member.run(stopping).await });

    // 3. The buyers.
    let buyers = Buyers::new(&config, &foundation, &instance, (&journal, None), &mut registry).await?;
    let running = buyers.start(registry)?;
    buyers.greet(&config, &running, None);
    let ended = tokio::select! {
        biased;
        signal = signals::signal() => signal,
        poisoned = signals::poisoned(&instance.orders) => Err(poisoned),
    };

    // 4. The end.
    let finished = buyers.finish(running).await;
    stop.send_replace(true);
    // It can only have ended, or panicked and said so.
    let _ = membership.await;
    instance.leave(ended.is_ok() && finished).await;
    ended
}

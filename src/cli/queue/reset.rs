//! `queue reset-offset`: a consumer group goes on from another place.

use clap::Args;
use order_worker::membership::operator::hand_over_again;
use order_worker::{Author, DRAIN_GROUP, Database, ORDERS_TOPIC};
use queue::{Position, Queue, QueueError, Topic, operator};
use stock::Timestamp;

use super::super::Failure;
use crate::config::Config;
use crate::{engines, stdout};

/// What skipping leaves behind, where it is promised orders that are skipped.
const SKIPPED_ORDERS: &str = "The skipped records are promised orders, which nobody writes now. Their buyers hear `queued`, and their units stay \
     reserved, until the stock ledger is rebuilt: before gateways start again, or they may append some of these orders anew. Begin it \
     with `floodgate ledger rebuild` (an embedded ledger is rebuilt at each start); `floodgate audit` names what is left of them.";

/// What the log does not give back.
const PAYMENTS: &str = "Payments, cancellations and refunds since the backup are not in the log. Before you start again set payment.check_url, \
     which is asked before an unpaid order is closed; without one, set payment.grace_s high, start, have the provider send its notifications \
     again (or send them from its statement), and set it back: an order that was paid would be closed as unpaid.";

/// Which group goes on where.
#[derive(Debug, Args)]
pub(crate) struct ResetOffset {
    /// The topic, as `floodgate queue topics` lists it
    topic: String,
    /// The group, as `floodgate queue groups` lists it
    group: String,
    #[command(flatten)]
    to: Place,
    /// Allow going forward, past records that the group has not finished: it will never see them
    ///
    /// Of order-worker these are promised orders: their buyers hear `queued`, and their units stay reserved, until the stock ledger is
    /// rebuilt.
    #[arg(long)]
    skip_records: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// Go on with the oldest record that is kept
    #[arg(long)]
    oldest: bool,
    /// Go on with the next record that will be appended
    #[arg(long)]
    newest: bool,
    /// Go on behind this position
    #[arg(long, value_name = "POSITION")]
    after: Option<Position>,
    /// Go back to the last record written before this time, such as 2026-11-11T20:00:00+08:00; never forward
    ///
    /// For a database that was put back: with a time before its backup was begun, by more than orders then waited in the queue,
    /// every order that the backup lacks is written again. What was drained longer than queue.keep_drained_s ago may be gone: the
    /// command then says from when on records are kept.
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
    /// Go on with what was written at or after this time, earlier or later
    #[arg(long, value_name = "TIME")]
    time: Option<Timestamp>,
}

impl ResetOffset {
    pub(super) async fn run(self, config: &Config, queue: &Queue) -> Result<(), Failure> {
        let topic = super::topic(queue, &self.topic).await?;
        let is_of_promises = self.topic == ORDERS_TOPIC && self.group == DRAIN_GROUP;
        let before = topic.committed(&self.group).await?;
        let mut through = self.to.through(&topic).await?;
        if self.to.before.is_some() && through >= before {
            stdout::line(format_args!(
                "group {} of {} is at {} already, which was written before that time: it stays there",
                self.group,
                self.topic,
                super::position(before)
            ))?;
            if !is_of_promises {
                return Ok(());
            }
            through = before;
        }
        if through > topic.end() {
            return Err(Failure::Usage(format!(
                "position {} is beyond the newest record, {}",
                super::position(through),
                super::position(topic.end())
            )));
        }
        let skipped = through.filter(|through| Some(*through) > before);
        let skipped = match skipped {
            Some(through) => topic.behind(&self.group, through).await?,
            None => 0,
        };
        if skipped > 0 && !self.skip_records {
            return Err(Failure::Usage(format!(
                "group {} would never see up to {skipped} records that it has not finished; \
                 add --skip-records if that is what you want",
                self.group
            )));
        }
        let is_again = is_of_promises && through <= before;
        match is_again.then(|| engines::ledger_outlives(config)) {
            Some(true) => {
                // Before the offset moves: without them the ledger would be left as it is.
                let (database, author) = rebuilder(config).await?;
                let epoch = hand_over_again(&database, &topic, through, &author).await?;
                stdout::line(format_args!(
                    "the stock ledger is rebuilt from epoch {epoch} on: what it remembers may not be what the rows say"
                ))?;
            }
            Some(false) | None => operator::reset_to_position(&topic, &self.group, through).await?,
        }
        stdout::line(format_args!(
            "group {} of {} goes on behind {}, before it was {}",
            self.group,
            self.topic,
            super::position(through),
            super::position(before)
        ))?;
        if skipped > 0 && is_of_promises {
            stdout::line(SKIPPED_ORDERS)?;
        }
        if is_again {
            stdout::line(PAYMENTS)?;
        }
        Ok(())
    }
}

/// What begins a new life of a shared ledger.
async fn rebuilder(config: &Config) -> Result<(Database, Author), Failure> {
    let author = config.journal_key()?.operator("command line");
    Ok((engines::open_database_to_read(config).await?, author))
}

impl Place {
    async fn through(&self, topic: &Topic) -> Result<Option<Position>, Failure> {
        Ok(match self {
            Self { newest: true, .. } => topic.end(),
            Self { after: Some(position), .. } => Some(*position),
            Self { before: Some(time), .. } | Self { time: Some(time), .. } => {
                topic.position_before(time.0).await.map_err(|error| match error {
                    QueueError::NotKept { oldest_ms } => Failure::Failed(format!(
                        "what was written before {time} is not kept any more: the oldest kept record was written at {}. Use that time \
                         or a later one, or --oldest for all that is kept; queue.keep_drained_s and queue.keep_drained_bytes_max say \
                         how much that is",
                        Timestamp(oldest_ms)
                    )),
                    error => error.into(),
                })?
            }
            _ => None,
        })
    }
}

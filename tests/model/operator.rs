//! The operator: restocks (the same restock again after a lost answer), pauses, resumes, publishes a second sale.

use std::rc::Rc;
use std::time::Duration;

use gateway::ports::SaleChange;
use order_worker::DRAIN_GROUP;
use queue::operator::DeadLetter;
use queue::{QueueError, Topic};
use stock::{Reservation, SaleDefinition, SaleId, Timestamp};
use tokio::time::sleep;

use crate::census::RESTOCKED;
use crate::machine::Machine;
use crate::process::Call;
use crate::random::Random;
use crate::world::World;

/// See the module.
pub(crate) struct Operator {
    pub(crate) world: Rc<World>,
    pub(crate) machines: Rc<Vec<Machine>>,
    pub(crate) random: Random,
}

impl Operator {
    /// Does some things while buyers press.
    pub(crate) async fn work(&self, tasks: u64) {
        let sale = self.world.sale.id.clone();
        for task in 0..tasks {
            sleep(Duration::from_millis(self.random.below(8_000))).await;
            match self.random.below(6) {
                0..=2 => {
                    let units = self.random.between(1, 3) as u32;
                    let restock_id = format!("restock-{task}");
                    self.insist(&sale, || SaleChange::Restock { restock_id: restock_id.clone(), units })
                        .await;
                }
                3 => {
                    let answer = self.machine().call(|answer| Call::Rubbish { answer }).await;
                    self.world.trace.say(format_args!("rubbish in the topic: {answer:?}"));
                }
                4 => {
                    self.insist(&sale, || SaleChange::Pause { by: "operator".into() }).await;
                    sleep(Duration::from_millis(self.random.below(3_000))).await;
                    self.resume(&sale).await;
                }
                _ => self.publish_short_sale(task).await,
            }
        }
    }

    /// Lifts any pause.
    pub(crate) async fn resume(&self, sale: &SaleId) {
        self.insist(sale, || SaleChange::Resume).await;
    }

    /// A sale that nobody buys from and that is over soon.
    async fn publish_short_sale(&self, task: u64) {
        let now_ms = self.world.now_ms();
        let definition = SaleDefinition {
            id: format!("short-{task}").parse().expect("a sale id"),
            starts_at: Timestamp(now_ms),
            ends_at: Timestamp(now_ms + 100),
            ..self.world.sale.clone()
        };
        for _ in 0..100 {
            let definition = Box::new(definition.clone());
            let answer = self.machine().call(|answer| Call::Publish { definition, answer }).await;
            self.world
                .trace
                .say(format_args!("operator publishes: {:?}", answer.as_ref().map(Result::is_ok)));
            if let Some(Ok(_)) = answer {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
        panic!("the operator could not publish a sale in 100 tries");
    }

    /// Repeats a change until it is answered well.
    async fn insist(&self, sale: &SaleId, change: impl Fn() -> SaleChange) {
        for _ in 0..100 {
            let (sale, change) = (sale.clone(), change());
            let what = format!("{change:?}");
            let is_restock = matches!(change, SaleChange::Restock { .. });
            let was_rebuilding = self.world.is_rebuilding();
            let answer = self.machine().call(|answer| Call::Change { sale, change, answer }).await;
            let told =
                answer.as_ref().map(|answer| answer.as_ref().map(|sale| (sale.total_now, sale.version)));
            self.world.trace.say(format_args!("operator {what}: {told:?}"));
            if let Some(Ok(_)) = answer {
                if is_restock && was_rebuilding {
                    self.world.census.saw(RESTOCKED);
                }
                return;
            }
            sleep(Duration::from_millis(200 + self.random.below(800))).await;
        }
        panic!("the operator was not answered in 100 tries");
    }

    fn machine(&self) -> &Machine {
        self.random.pick(&self.machines)
    }
}

/// The dead letters of the drain that are orders.
pub(crate) async fn promised_letters(topic: &Topic) -> Result<Vec<DeadLetter>, QueueError> {
    let mut letters = queue::operator::dead_letters(topic, DRAIN_GROUP, None, usize::MAX).await?;
    letters.retain(|letter| Reservation::decode(&letter.message.payload).is_ok());
    Ok(letters)
}

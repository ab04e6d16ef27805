//! Buyers: they press, press again, lose patience, ask, cancel, come back with used passes. They believe only what design
//! lets them believe: a 202, a certain refusal of one attempt, and what `GET` says after the batch's deadline.

use std::rc::Rc;
use std::time::Duration;

use gateway::ports::{Cancelled, PortError};
use gateway::purchase::PurchaseAnswer;
use stock::{OrderId, OrderStatus, SaleId, UserId};
use tokio::time::{sleep, timeout};

use crate::census::{LATER_LIFE, USED_AGAIN};
use crate::checks;
use crate::claims::Claims;
use crate::machine::Machine;
use crate::money;
use crate::process::{Call, PassAnswer};
use crate::random::Random;
use crate::world::World;

/// After this long a press of which nothing was heard can no longer take anything, and recovery has had its turn: beyond the
/// batch deadline of 1 s and a restart.
const AFTERMATH: Duration = Duration::from_millis(2_500);
/// A browser's patience.
const PATIENCE_MAX: Duration = Duration::from_secs(30);

/// One buyer.
pub(crate) struct Buyer {
    pub(crate) user: UserId,
    pub(crate) sale: SaleId,
    pub(crate) world: Rc<World>,
    pub(crate) machines: Rc<Vec<Machine>>,
    pub(crate) claims: Rc<Claims>,
    pub(crate) random: Random,
}

/// A pass and the order that it names.
#[derive(Clone)]
struct Ticket {
    pass: String,
    order_id: OrderId,
}

/// What one press came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Press {
    Won,
    /// Nothing was taken by this press.
    Refused,
    /// The same, and for lack of stock.
    SoldOut,
    /// Nobody knows yet.
    Unknown,
}

impl Buyer {
    /// A whole visit of some rounds, with whatever this buyer is like.
    pub(crate) async fn visit(&self, rounds: u64) {
        let mut used: Vec<Ticket> = Vec::new();
        for _ in 0..rounds {
            // Mostly all at once.
            let pause_ms = *self.random.pick(&[1, 1, 20, 500, 4_000]);
            sleep(Duration::from_millis(self.random.below(pause_ms))).await;
            let old = !used.is_empty() && self.random.chance(250);
            let ticket = if old {
                self.random.pick(&used).clone()
            } else {
                let Some(ticket) = self.pass().await else { continue };
                used.push(ticket.clone());
                ticket
            };
            let quantity = self.random.between(1, u64::from(self.world.sale.per_user_limit) + 1) as u32;
            let mut press = self.press(&ticket, quantity).await;
            // Impatient fingers: at once, or with another number in the box.
            while self.random.chance(250) {
                let again = if self.random.chance(300) { quantity % 3 + 1 } else { quantity };
                press = self.press(&ticket, again).await;
            }
            if self.random.chance(300) {
                self.peek(&ticket).await;
            }
            if self.world.pays && self.random.chance(700) {
                money::pay(&self.world, &self.machines, &self.random, ticket.order_id, quantity).await;
            }
            if press == Press::Unknown || self.random.chance(300) {
                self.resolve(&ticket).await;
            }
            if self.random.chance(350) {
                self.cancel(&ticket).await;
                // The used pass again, in whatever life of the ledger.
                if self.random.chance(300) {
                    let pause_ms = *self.random.pick(&[1, 1_000, 5_000]);
                    sleep(Duration::from_millis(self.random.below(pause_ms))).await;
                    self.press(&ticket, quantity).await;
                }
            }
        }
    }

    /// Buys single units with fresh passes until there is none, or the limit is reached.
    pub(crate) async fn buy_out(&self) {
        for _ in 0..40 {
            let Some(ticket) = self.pass().await else {
                sleep(Duration::from_millis(500)).await;
                continue;
            };
            match self.press(&ticket, 1).await {
                Press::SoldOut | Press::Won => return,
                Press::Unknown => self.resolve(&ticket).await,
                Press::Refused => {}
            }
            sleep(Duration::from_millis(100 + self.random.below(400))).await;
        }
    }

    fn machine(&self) -> &Machine {
        self.random.pick(&self.machines)
    }

    async fn pass(&self) -> Option<Ticket> {
        let (user, sale) = (self.user.clone(), self.sale.clone());
        let answer = self.machine().call(|answer| Call::Pass { user, sale, answer }).await?;
        match answer {
            PassAnswer::Issued { pass, order_id } => Some(Ticket { pass, order_id }),
            PassAnswer::Refused => None,
        }
    }

    async fn press(&self, ticket: &Ticket, quantity: u32) -> Press {
        let order_id = ticket.order_id;
        let machine = self.machine();
        self.take_note(order_id);
        self.claims.pressed(order_id, &self.sale, &self.user, quantity, machine.instance);
        let (sale, pass) = (self.sale.clone(), ticket.pass.clone());
        let patience = if self.random.chance(150) {
            Duration::from_millis(self.random.below(600))
        } else {
            PATIENCE_MAX
        };
        let call = machine.call(|answer| Call::Buy { sale, pass, quantity, answer });
        let answer = timeout(patience, call).await.ok().flatten();
        self.world.trace.say(format_args!("{} presses {order_id} × {quantity}: {answer:?}", self.user));
        match answer {
            Some(
                PurchaseAnswer::Accepted { order_id: told, .. }
                | PurchaseAnswer::Settled { order_id: told, .. },
            ) => {
                assert_eq!(told, order_id, "another order was promised than the pass names");
                self.claims.promised(order_id);
                checks::check_promise(&self.world, &self.sale, order_id);
                Press::Won
            }
            Some(PurchaseAnswer::Uncertain { order_id: told }) => {
                assert_eq!(told, order_id, "another order is uncertain than the pass names");
                Press::Unknown
            }
            None => Press::Unknown,
            Some(PurchaseAnswer::SoldOut) => {
                self.claims.refused(order_id);
                Press::SoldOut
            }
            Some(PurchaseAnswer::PassUsed { .. }) => {
                self.claims.refused(order_id);
                Press::Refused
            }
            Some(_) => {
                self.claims.refused(order_id);
                Press::Refused
            }
        }
    }

    /// Asks once, at once: an order that is shown is there to stay; one that is not may still come.
    async fn peek(&self, ticket: &Ticket) {
        let epoch = self.world.epoch();
        if let Some(Ok(Some(_))) = self.ask(ticket.order_id).await {
            self.claims.seen(ticket.order_id, epoch);
        }
    }

    async fn ask(&self, order_id: OrderId) -> Option<Result<Option<OrderStatus>, PortError>> {
        let user = self.user.clone();
        let call = self.machine().call(|answer| Call::Status { order_id, user, answer });
        let answer = timeout(PATIENCE_MAX, call).await.ok().flatten();
        self.world.trace.say(format_args!("{} asks for {order_id}: {answer:?}", self.user));
        answer
    }

    /// Asks until somebody knows.
    async fn resolve(&self, ticket: &Ticket) {
        let order_id = ticket.order_id;
        sleep(AFTERMATH).await;
        for _ in 0..20 {
            let epoch = self.world.epoch();
            match self.ask(order_id).await {
                Some(Ok(Some(_))) => return self.claims.seen(order_id, epoch),
                Some(Ok(None)) => return self.claims.absent(order_id),
                Some(Err(_)) | None => {
                    sleep(Duration::from_millis(500 + self.random.below(1_000))).await;
                }
            }
        }
    }

    async fn cancel(&self, ticket: &Ticket) {
        let (order_id, user) = (ticket.order_id, self.user.clone());
        self.claims.cancel_asked(order_id);
        let answer = self.machine().call(|answer| Call::Cancel { order_id, user, answer }).await;
        self.world.trace.say(format_args!("{} cancels {order_id}: {answer:?}", self.user));
        if let Some(Ok(Cancelled::Done(order))) = answer {
            assert_eq!(order.status, OrderStatus::Closed, "a cancelled order is closed");
            self.claims.cancelled(order_id, self.world.epoch());
        }
    }

    /// A pass is about to be pressed: maybe one whose order is over.
    fn take_note(&self, order_id: OrderId) {
        if let Some(claim) = self.claims.get(order_id).filter(|claim| claim.cancelled) {
            if self.world.is_rebuilding() {
                self.world.census.saw(USED_AGAIN);
            } else if self.world.epoch() > claim.cancelled_in {
                self.world.census.saw(LATER_LIFE);
            }
        }
    }
}

//! Takes providers' calls all the way: signature, time, row. The one place where a payment that came in meets the database; it answers
//! only when the row is durable, and keeps to a budget beside the drain's.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use stock::{OrderId, Timestamp};

use super::Provider;
use super::{Heard, Notice, Receivers, Refusal};
use crate::database::{Capture, Database, DatabaseError, Disposition, RefundHeard, RefundTold};

/// Signed calls that go to the database in a second, and at once after a pause: beyond it they are told to come again.
const PAYMENTS_PER_SECOND_MAX: NonZeroU32 = NonZeroU32::new(1_000).expect("is not 0");

/// See the module.
pub struct PaymentInbox {
    receivers: Receivers,
    database: Database,
    budget: DefaultDirectRateLimiter,
}

/// What became of a call that is believed. It is durable, or changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The order that it speaks of.
    pub order_id: Option<OrderId>,
    /// It is not what the order costs, and goes back: the same at each repeat.
    pub is_mismatch: bool,
}

/// Why a call did not get as far.
#[derive(Debug, thiserror::Error)]
pub enum NotReceived {
    /// It is not believed, or no use.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The budget is spent: later.
    #[error("more payments at once than payments may take of the database")]
    Busy,
    /// The row may or may not be there: a repeat finds out.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl PaymentInbox {
    /// Over the configured receivers.
    #[must_use]
    pub fn new(receivers: Receivers, database: Database) -> Self {
        Self { receivers, database, budget: RateLimiter::direct(Quota::per_second(PAYMENTS_PER_SECOND_MAX)) }
    }

    /// The receivers.
    #[must_use]
    pub fn receivers(&self) -> &Receivers {
        &self.receivers
    }

    /// One call of a provider. A repeat is answered as the first was.
    ///
    /// # Errors
    /// [`NotReceived`].
    pub async fn take(&self, provider: Provider, notice: Notice<'_>) -> Result<Received, NotReceived> {
        // 1. The signature, before anything else costs anything.
        let signed = self.receivers.hear(provider, notice)?;
        // 2. The budget: from here on the database works for it.
        self.budget.check().map_err(|_| NotReceived::Busy)?;
        // 3. The time, by the clock that deadlines go by.
        let now = if signed.is_dated() { self.database.now().await? } else { Timestamp(0) };
        let name = provider.as_str();
        // Only what is signed gets here, so that these lines cannot be bought by the million.
        let heard = signed.at(now).inspect_err(|refusal| match refusal {
            Refusal::OurKey(why) => {
                tracing::error!("a call of {name} cannot be read: {why}; it is sent again for hours")
            }
            Refusal::Malformed(why) => tracing::warn!("a signed call of {name} is refused: {why}"),
            Refusal::NotOurs(why) => tracing::warn!("a signed call of {name} is refused: {why}"),
            Refusal::Signature(_) | Refusal::Time => {}
        })?;
        // 4. The row. Until the database answers nobody has heard anything: a crash before its commit leaves a call that is sent
        //    again, one after it a repeat that finds the row.
        match heard {
            Heard::Captured(capture) => self.capture(&capture).await,
            Heard::Refund(told) => self.refund(name, &told).await,
            Heard::Nothing(what) => {
                tracing::info!("a call of {name} changes nothing: {what}");
                Ok(Received { order_id: None, is_mismatch: false })
            }
        }
    }

    async fn capture(&self, capture: &Capture) -> Result<Received, NotReceived> {
        let captured = self.database.capture(capture).await?;
        if captured.differs {
            tracing::error!(
                provider = capture.provider,
                payment = capture.payment_id,
                "a payment was told of again, with another order, amount or currency: the first word stands; `floodgate payments show` \
                 has it"
            );
        }
        let is_mismatch = matches!(captured.disposition, Disposition::Refund(reason) if reason.is_mismatch());
        Ok(Received { order_id: capture.order_id, is_mismatch })
    }

    async fn refund(&self, provider: &str, told: &RefundTold) -> Result<Received, NotReceived> {
        if self.database.refund_told(told).await? == RefundHeard::Unknown {
            tracing::warn!(
                refund = told.refund_id,
                "{provider} tells of a refund that is none of ours: it was made at the provider itself, and no order knows of it"
            );
        }
        Ok(Received { order_id: None, is_mismatch: false })
    }
}

//! Carries a withdrawal through: what is unpaid is closed, what is paid goes back, page by page, under the budget of
//! closings, until nothing of the sale is either. What is still in a log is closed by intake, in the transaction that
//! writes its row.

use std::time::Duration;

use stock::{OrderStatus, SaleId, Timestamp};
use tokio::sync::watch;

use super::{Closing, ShuttingDown, pause};
use crate::database::{CloseCause, CloseOutcome, DatabaseError, Due};

/// Between two looks for a withdrawn sale.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same while one has orders left: each look reads all of its orders.
const INTERVAL_LEFT: Duration = Duration::from_secs(10);

impl Closing {
    /// Carries withdrawals through until `shutdown` is true or its sender gone. A crash leaves the rest of a sale's
    /// orders as they were, and the sale marked: the next look begins anew with it.
    pub(super) async fn withdrawals(&self, shutdown: &mut watch::Receiver<bool>) {
        loop {
            let interval = match self.withdraw_all(shutdown).await {
                Ok(true) => INTERVAL,
                Ok(false) => INTERVAL_LEFT,
                Err(None) => return,
                Err(Some(error)) => {
                    tracing::warn!(%error, "a withdrawn sale's orders cannot be closed; they are tried again");
                    INTERVAL
                }
            };
            if pause(shutdown, interval).await.is_err() {
                return;
            }
        }
    }

    /// Whether nothing is left to do. No error: the process is shutting down.
    async fn withdraw_all(
        &self,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<bool, Option<DatabaseError>> {
        let mut is_done = true;
        for sale in self.database.withdrawing().await.map_err(Some)? {
            self.withdraw(&sale, shutdown).await?;
            if self.database.withdrawal_done(&sale).await.map_err(Some)? {
                tracing::info!(%sale, "of a withdrawn sale no order is unpaid or paid any more");
            } else {
                is_done = false;
            }
        }
        Ok(is_done)
    }

    async fn withdraw(
        &self,
        sale: &SaleId,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), Option<DatabaseError>> {
        let mut after = None;
        loop {
            let most = self.pace.batch_max();
            let page = self.database.orders(sale, after, most).await.map_err(Some)?;
            let in_state = |status| page.iter().filter(move |row| row.status == status);
            let unpaid = in_state(OrderStatus::Unpaid);
            let unpaid: Vec<Due> =
                unpaid.map(|row| Due { order_id: row.order_id, sale: sale.clone() }).collect();
            if !unpaid.is_empty() {
                self.take(unpaid.len(), shutdown).await.map_err(|ShuttingDown| None)?;
                let outcomes = self.database.close_withdrawn(&unpaid).await.map_err(Some)?;
                self.count(&outcomes, "withdrawal");
                let closed = unpaid.into_iter().zip(&outcomes);
                let closed = closed.filter(|(_, outcome)| **outcome == CloseOutcome::Closed);
                let told = closed.map(|(due, _)| due).collect();
                self.shop.tell(told, CloseCause::Withdrawn, Timestamp((self.now)())).await;
            }
            // A row at a time: each locks its payment. Who has paid since the page was read is found by the next look.
            for row in in_state(OrderStatus::Paid) {
                self.take(1, shutdown).await.map_err(|ShuttingDown| None)?;
                self.database.refund_withdrawn(row.order_id).await.map_err(Some)?;
            }
            match page.last() {
                Some(last) if page.len() == most => after = Some(last.order_id),
                _ => return Ok(()),
            }
        }
    }
}

//! What the map of books answers to buyers' calls.

use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use gateway::ports::{Cancelled, OrderView, Orders, PortError, PortFuture, Refunded};
use stock::{OrderId, OrderStatus, SaleDefinition, SaleId, UserId};

use super::{MapBooks, refunds};

impl Orders for MapBooks {
    fn order(&self, order_id: OrderId) -> PortFuture<'_, Option<OrderView>> {
        async move {
            self.answers().await;
            self.check()?;
            self.order_reads.fetch_add(1, Ordering::Relaxed);
            Ok(self.orders.lock().get(&order_id).cloned())
        }
        .boxed()
    }

    fn offered(&self, sale: SaleId, version: u64) -> PortFuture<'_, Option<SaleDefinition>> {
        async move { Ok(self.versions.lock().get(&(sale, version)).cloned()) }.boxed()
    }

    fn orders_of(&self, sale: SaleId, user: UserId, limit: usize) -> PortFuture<'_, Vec<OrderView>> {
        async move {
            self.answers().await;
            self.check()?;
            self.order_reads.fetch_add(1, Ordering::Relaxed);
            let orders = self.orders.lock();
            let mine = orders.values().filter(|order| order.sale == sale && order.user == user);
            let mut mine: Vec<_> = mine.cloned().collect();
            mine.sort_by_key(|order| std::cmp::Reverse(order.order_id));
            mine.truncate(limit);
            Ok(mine)
        }
        .boxed()
    }

    fn cancel(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Cancelled> {
        self.close(order_id, Some(user)).boxed()
    }

    fn refund(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Refunded> {
        refunds::refund(self, order_id, Some(user), None).boxed()
    }

    fn reachable(&self) -> PortFuture<'_, ()> {
        async move { self.check() }.boxed()
    }
}

impl MapBooks {
    pub(super) async fn close(
        &self,
        order_id: OrderId,
        user: Option<UserId>,
    ) -> Result<Cancelled, PortError> {
        self.answers().await;
        self.check()?;
        let closed = {
            let mut orders = self.orders.lock();
            let of_user = |order: &&mut OrderView| user.as_ref().is_none_or(|user| order.user == *user);
            let Some(order) = orders.get_mut(&order_id).filter(of_user) else {
                return Ok(Cancelled::NotFound);
            };
            match order.status {
                OrderStatus::Unpaid => order.status = OrderStatus::Closed,
                OrderStatus::Closed => return Ok(Cancelled::Done(order.clone())),
                status => return Ok(Cancelled::WrongState(status)),
            }
            order.clone()
        };
        let settlement =
            stock::ledger::Settlement { order_id, user: closed.user.clone(), quantity: closed.quantity };
        self.stock.release(&closed.sale, &[settlement]).await.expect("released");
        Ok(Cancelled::Done(closed))
    }
}

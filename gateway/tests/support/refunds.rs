//! Refunds over the map: a paid order's money goes back at once as far as anybody asks, each under the order's id.

use gateway::ports::{OrderChange, OrderChanged, PortError, RefundView, Refunded};
use stock::{OrderId, OrderStatus, RefundPolicy, UserId};

use super::MapBooks;

pub(super) async fn refund(
    books: &MapBooks,
    order_id: OrderId,
    user: Option<UserId>,
    part: Option<u64>,
) -> Result<Refunded, PortError> {
    books.answers().await;
    books.check()?;
    let mut orders = books.orders.lock();
    let of_user =
        |order: &&mut gateway::ports::OrderView| user.as_ref().is_none_or(|user| order.user == *user);
    let Some(order) = orders.get_mut(&order_id).filter(of_user) else {
        return Ok(Refunded::NotFound);
    };
    let policy = books.sales.lock().get(&order.sale).map(|sale| sale.definition.refund);
    if user.is_some() && policy == Some(RefundPolicy::Operator) {
        return Ok(Refunded::NotOffered);
    }
    let amount = part.unwrap_or(order.amount);
    if amount > order.amount {
        return Ok(Refunded::TooMuch(order.amount));
    }
    match order.status {
        OrderStatus::Paid if part.is_some() => {}
        OrderStatus::Paid | OrderStatus::Refunding => order.status = OrderStatus::Refunding,
        OrderStatus::Refunded => {}
        status => return Ok(Refunded::WrongState(status)),
    }
    let refund = refund_view(order_id, amount);
    Ok(Refunded::Asked { order: Box::new(order.clone()), refund: Box::new(refund) })
}

/// What an operator wants of an order; the reason shows in a refund.
pub(super) async fn change_order(
    books: &MapBooks,
    order_id: OrderId,
    change: OrderChange,
    reason: Option<String>,
) -> Result<OrderChanged, PortError> {
    let part = match change {
        OrderChange::Cancel | OrderChange::Close => {
            return Ok(OrderChanged::Cancelled(books.close(order_id, None).await?));
        }
        OrderChange::Refund(part) => part.map(|part| part.amount),
    };
    let mut refunded = refund(books, order_id, None, part).await?;
    if let Refunded::Asked { refund, .. } = &mut refunded {
        refund.reason = reason;
    }
    Ok(OrderChanged::Refunded(refunded))
}

pub(super) fn refund_view(order_id: OrderId, amount: u64) -> RefundView {
    RefundView {
        refund_id: order_id.to_string(),
        provider: "sandbox".into(),
        payment_id: "t".into(),
        order_id: Some(order_id),
        amount,
        whole: true,
        state: "requested",
        reason: None,
        requested_by: "buyer".into(),
        attempts: 0,
        last_error: None,
    }
}

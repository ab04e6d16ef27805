//! How the server means to carry out the queries on the path.

use super::*;

#[tokio::test]
async fn each_index_serves_a_query_and_no_query_scans_the_orders() {
    let fixture = open().await;
    fixture.publish("s", 10_000, 1).await;
    let batch: Vec<_> = (0..500).map(|n| reservation("s", n, &format!("u{n}"), 1)).collect();
    fixture.database.settle(batch).await.unwrap();
    for (query, index) in [
        (
            "SELECT sale_id, user_id, units_held FROM floodgate_orders FORCE INDEX (floodgate_orders_user)
             WHERE sale_id = 's' AND user_id IN ('u1', 'u2', 'u3') AND units_held > 0",
            "floodgate_orders_user",
        ),
        (
            "SELECT * FROM floodgate_orders FORCE INDEX (floodgate_orders_sale)
             WHERE sale_id = 's' AND order_id > '0' ORDER BY order_id LIMIT 9",
            "floodgate_orders_sale",
        ),
        (&format!("SELECT * FROM floodgate_orders WHERE order_id = '{}'", order_id(7)), "PRIMARY"),
        (
            "SELECT * FROM floodgate_orders FORCE INDEX (floodgate_orders_due)
             WHERE status = 'unpaid' AND pay_by < '2026-11-11T12:00:00.000Z' ORDER BY pay_by LIMIT 9",
            "floodgate_orders_due",
        ),
        (
            "SELECT * FROM floodgate_payments FORCE INDEX (floodgate_payments_order)
             WHERE order_id = 'x' AND disposition = 'kept' FOR UPDATE",
            "floodgate_payments_order",
        ),
        (
            "SELECT STRAIGHT_JOIN p.provider, p.payment_id
             FROM floodgate_payments AS p FORCE INDEX (floodgate_payments_disposition)
             JOIN floodgate_orders AS o ON o.order_id = p.order_id
             WHERE p.disposition = 'unmatched' ORDER BY p.received_at LIMIT 9",
            "floodgate_payments_disposition",
        ),
        (
            "SELECT provider, payment_id FROM floodgate_payments FORCE INDEX (floodgate_payments_disposition)
             WHERE disposition = 'unmatched' AND received_at <= '2026-11-11T12:00:00.000Z' ORDER BY received_at LIMIT 9",
            "floodgate_payments_disposition",
        ),
        (
            "SELECT * FROM floodgate_refunds FORCE INDEX (floodgate_refunds_payment)
             WHERE provider = 'alipay' AND payment_id = 't1'",
            "floodgate_refunds_payment",
        ),
        (
            "SELECT * FROM floodgate_refunds FORCE INDEX (floodgate_refunds_due)
             WHERE next_try_at <= '2026-11-11T12:00:00.000Z' ORDER BY next_try_at LIMIT 9",
            "floodgate_refunds_due",
        ),
        (
            "SELECT sale_id FROM floodgate_sales FORCE INDEX (floodgate_sales_withdrawing)
             WHERE withdrawing = 1 ORDER BY sale_id",
            "floodgate_sales_withdrawing",
        ),
        (
            "SELECT * FROM floodgate_payments FORCE INDEX (PRIMARY)
             WHERE provider = 'alipay' AND payment_id > 't1' ORDER BY payment_id LIMIT 9",
            "PRIMARY",
        ),
        (
            "SELECT * FROM floodgate_refunds FORCE INDEX (floodgate_refunds_payment)
             WHERE provider = 'alipay' AND payment_id > 't1' AND payment_id <= 't9'",
            "floodgate_refunds_payment",
        ),
        (
            "SELECT * FROM floodgate_refunds FORCE INDEX (floodgate_refunds_state)
             WHERE state = 'stuck' AND refund_id > 'a' ORDER BY refund_id LIMIT 9",
            "floodgate_refunds_state",
        ),
    ] {
        let plan = SERVER.sql(name(&fixture), &format!("EXPLAIN FORMAT=TRADITIONAL {query}")).unwrap();
        assert!(
            plan.contains(index) && !plan.contains("filesort") && !plan.contains("\tALL\t"),
            "{query}\n{plan}"
        );
    }
    let indexes = SERVER.sql(name(&fixture), "SELECT COUNT(DISTINCT index_name) FROM information_schema.statistics
                                              WHERE table_schema = DATABASE() AND table_name = 'floodgate_orders'");
    assert_eq!(indexes.unwrap().trim(), "4");
}

//! Payments over the map: a call's body says how it is answered, since signatures are the port's business.

use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use gateway::ports::{PaymentAnswer, PaymentProvider, PaymentRefusal, Payments, PortFuture};
use stock::Timestamp;

use super::MapBooks;

impl Payments for MapBooks {
    /// All but WeChat Pay's while the database is out of reach.
    fn takes(&self, provider: PaymentProvider) -> bool {
        provider != PaymentProvider::WechatPay || !self.unreachable.load(Ordering::Relaxed)
    }

    fn call<'a>(
        &'a self,
        _: PaymentProvider,
        headers: &'a [(&'a str, &'a [u8])],
        body: &'a [u8],
    ) -> PortFuture<'a, PaymentAnswer> {
        async move {
            self.order_reads.fetch_add(1, Ordering::Relaxed);
            self.answers().await;
            self.check()?;
            let refused = |of: fn(String) -> PaymentRefusal| Ok(PaymentAnswer::Refused(of("why".into())));
            match body {
                b"unsigned" => refused(PaymentRefusal::Unsigned),
                b"malformed" => refused(PaymentRefusal::Malformed),
                b"not ours" => refused(PaymentRefusal::NotOurs),
                b"our fault" => refused(PaymentRefusal::OurFault),
                b"mismatch" => Ok(PaymentAnswer::AmountMismatch { order_id: None }),
                _ if headers
                    .iter()
                    .any(|(name, value)| (*name, *value) == ("webhook-signature", b"demo")) =>
                {
                    let call: serde_json::Value = serde_json::from_slice(body).expect("json");
                    let order_id =
                        call["order_id"].as_str().and_then(|id| id.parse().ok()).expect("an order");
                    self.set_status(order_id, stock::OrderStatus::Paid);
                    Ok(PaymentAnswer::Received { order_id: Some(order_id) })
                }
                _ => Ok(PaymentAnswer::Received { order_id: None }),
            }
        }
        .boxed()
    }

    fn sign_callback(&self, _: &str, _: Timestamp, _: &[u8]) -> Option<[(&'static str, String); 3]> {
        Some([
            ("webhook-id", "x".into()),
            ("webhook-timestamp", "1".into()),
            ("webhook-signature", "demo".into()),
        ])
    }
}

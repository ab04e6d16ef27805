//! Leases of instances: calls on the server that holds them.

use redis::Value;

use super::{RedisLedger, scripts, wire};
use crate::Owner;
use crate::ledger::LedgerError;

impl RedisLedger {
    pub(in crate::ledger) async fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        let key = wire::leases_key(&self.inner.key_prefix);
        let answer = self.call(&scripts::RENEW_LEASE, [&*key].into_iter(), |call| {
            call.arg(owner.to_string()).arg(ttl_ms);
        });
        answer.await?.number()
    }

    pub(in crate::ledger) async fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        let key = wire::leases_key(&self.inner.key_prefix);
        let answer = self.call(&scripts::END_LEASE, [&*key].into_iter(), |call| {
            call.arg(owner.to_string());
        });
        answer.await.map(drop)
    }

    pub(in crate::ledger) async fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        let key = wire::leases_key(&self.inner.key_prefix);
        let mut answer = self.call(&scripts::LEASES, [&*key].into_iter(), |_| {}).await?;
        let now_ms = answer.number()?;
        let mut leases = Vec::new();
        while !answer.is_done() {
            let owner = answer.word()?;
            let owner =
                u64::from_str_radix(&owner, 16).map_err(|_| wire::strange(&Value::SimpleString(owner)))?;
            leases.push((Owner(owner), answer.number()?));
        }
        leases.sort_unstable();
        Ok((now_ms, leases))
    }
}

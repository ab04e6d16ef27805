//! What keeps ledger and rows equal behind the drain, and says whether they are: [`relay`] hands over what rows gave
//! up, [`reconciler`] is the net under everything that is told once (`look_ups`: which of it, and how much at a time),
//! [`audit`] changes nothing (where what is pending for long can be: [`accounting`]), nor does the continuous audit of
//! a shared ledger (`auditor`), nor the one of money ([`money`], against a provider's [`statement`] too).

pub mod accounting;
pub mod audit;
#[cfg(feature = "redis")]
pub mod auditor;
pub mod look_ups;
pub mod money;
pub mod reconciler;
pub mod relay;
pub mod statement;

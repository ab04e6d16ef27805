//! What a call on the ledger can meet, and what is certain then. It decides nothing: the caller does.

use crate::SaleId;

/// What a call on the ledger can meet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Nothing was carried out: the call did not reach the ledger.
    #[error("the stock ledger is out of reach: {0}")]
    Unavailable(String),
    /// It may or may not have been carried out.
    #[error("the stock ledger's answer was lost: {0}")]
    Uncertain(String),
    /// The ledger lives another life than the caller knows. Nothing was carried out.
    #[error("the stock ledger is at epoch {current}, not the caller's")]
    WrongEpoch {
        /// The ledger's.
        current: u64,
    },
    /// The batch came too late. Nothing was taken.
    #[error("the batch's deadline had passed when the ledger saw it")]
    DeadlinePassed,
    /// A rebuild is under way. Nothing was carried out.
    #[error("the stock ledger is being rebuilt")]
    Closed,
    /// The rebuild is over. Nothing was carried out.
    #[error("the stock ledger is open: there is nothing to restore any more")]
    Open,
    /// No such sale. Nothing was carried out.
    #[error("the stock ledger does not know sale {0}")]
    UnknownSale(SaleId),
    /// Nothing was carried out. Retryable, but only once somebody has rebuilt the ledger.
    #[error("the stock ledger's memory is not the one that this sale was opened with")]
    Amnesia,
    /// Another deployment's. Nothing was carried out, and nothing will be before an operator has decided.
    #[error(
        "sale {sale} in the stock ledger belongs to another orders database (deployment {by}): nothing of it is touched. Give this \
         deployment a stock.key_prefix or a Redis of its own; if the other one is gone for good, take its sales over with \
         `floodgate ledger adopt`"
    )]
    Foreign {
        /// Which sale.
        sale: SaleId,
        /// Whose it is.
        by: Box<str>,
    },
    /// The caller broke the contract (batch too large, quantity 0). Nothing was carried out.
    #[error("a call that the stock ledger cannot take: {0}")]
    Invalid(String),
}

impl LedgerError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Uncertain(_) | Self::Closed | Self::Amnesia)
    }

    /// Whether it is certain that the call changed nothing.
    #[must_use]
    pub fn took_nothing(&self) -> bool {
        !matches!(self, Self::Uncertain(_))
    }
}

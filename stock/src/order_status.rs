//! Where an order stands: one closed set of words for rows, answers, messages and commands. A word that is not among them is an
//! error that names it, never a status.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

// ## Queued => Unpaid => (Paid | Closed), Paid => (Refunding => Refunded), Queued => Rejected
/// Where an order stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum OrderStatus {
    /// Promised; not in the database yet.
    Queued,
    /// Holds its units until `pay_by`.
    Unpaid,
    /// Holds its units for good.
    Paid,
    /// Cancelled, or not paid in time; holds none.
    Closed,
    /// Its money is on the way back.
    Refunding,
    /// Its money is back.
    Refunded,
    /// Promised, but the database would not take it; never held any.
    Rejected,
}

impl OrderStatus {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Unpaid,
        Self::Paid,
        Self::Closed,
        Self::Refunding,
        Self::Refunded,
        Self::Rejected,
    ];

    /// Its word, everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Unpaid => "unpaid",
            Self::Paid => "paid",
            Self::Closed => "closed",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
            Self::Rejected => "rejected",
        }
    }

    /// Whether nothing will change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Closed | Self::Refunded | Self::Rejected)
    }
}

/// A word that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no status of an order: those are queued, unpaid, paid, closed, refunding, refunded and rejected"
)]
pub struct UnknownOrderStatus(pub String);

impl fmt::Display for OrderStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OrderStatus {
    type Err = UnknownOrderStatus;

    fn from_str(word: &str) -> Result<Self, UnknownOrderStatus> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == word);
        found.ok_or_else(|| UnknownOrderStatus(word.to_owned()))
    }
}

impl From<OrderStatus> for &'static str {
    fn from(status: OrderStatus) -> Self {
        status.as_str()
    }
}

impl TryFrom<String> for OrderStatus {
    type Error = UnknownOrderStatus;

    fn try_from(word: String) -> Result<Self, UnknownOrderStatus> {
        word.parse()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::*;

    /// Fails to compile where a variant is new, so that nobody forgets it in `ALL`.
    fn place(status: OrderStatus) -> usize {
        match status {
            OrderStatus::Queued => 0,
            OrderStatus::Unpaid => 1,
            OrderStatus::Paid => 2,
            OrderStatus::Closed => 3,
            OrderStatus::Refunding => 4,
            OrderStatus::Refunded => 5,
            OrderStatus::Rejected => 6,
        }
    }

    #[test]
    fn words_and_statuses_are_one_to_one_in_every_form() {
        for (index, status) in OrderStatus::ALL.into_iter().enumerate() {
            assert_eq!(place(status), index, "each once, in order");
            let word = status.as_str();
            assert_eq!(word.parse(), Ok(status));
            assert_eq!(status.to_string(), word);
            assert_eq!(serde_json::to_value(status).unwrap(), word);
            assert_eq!(serde_json::from_value::<OrderStatus>(word.into()).unwrap(), status);
            for other in OrderStatus::ALL {
                assert_eq!(other.as_str() == word, other == status);
            }
        }
    }

    #[test]
    fn every_other_word_is_an_error_that_names_it() {
        for word in ["", "Paid", "paid ", "shipped", "unpaid\0", "関閉"] {
            let error = word.parse::<OrderStatus>().unwrap_err().to_string();
            assert!(error.contains(&format!("{word:?}")), "{error}");
            for status in OrderStatus::ALL {
                assert!(error.contains(status.as_str()), "{error} names the right ones");
            }
            assert!(serde_json::from_value::<OrderStatus>(word.into()).is_err());
        }
    }

    #[test]
    fn what_is_final_gave_its_units_back_for_good() {
        let is_final = OrderStatus::ALL.into_iter().filter(|status| status.is_final());
        assert_eq!(
            is_final.collect::<Vec<_>>(),
            [OrderStatus::Closed, OrderStatus::Refunded, OrderStatus::Rejected]
        );
    }
}

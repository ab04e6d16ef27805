//! What the holder of one pass was told: the load tester's own memory, against which the audit holds the rows.

use crate::api::{Press, Refusal};
use crate::http::Lost;

/// One pass, the order that it names, and every answer about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The holder: `user_id` of the row.
    pub(crate) user: String,
    /// The order that the pass can become, as said when it was granted.
    pub(crate) order_id: String,
    /// Whether the holder counts as demand: see [`crate::crowd::Role::is_demand`].
    pub(crate) is_demand: bool,
    /// A 202 was heard.
    pub(crate) promised: bool,
    /// `GET /orders/{id}` showed the order after the last doubt.
    pub(crate) shown: bool,
    /// Another order id than the pass's was named by an answer.
    pub(crate) renamed: Option<String>,
    /// `GET /orders/{id}` said 404 though a 202 had been heard.
    pub(crate) denied_after_202: bool,
    /// The last definite refusal.
    pub(crate) refused: Option<Refusal>,
    /// An attempt has neither a definite answer nor been resolved since.
    pub(crate) in_doubt: bool,
    /// Answers `uncertain`.
    pub(crate) uncertain: u32,
    /// Attempts that the server left without an answer.
    pub(crate) unanswered: u32,
    /// Of those, one turned out to have been executed: the order was there before the holder pressed again.
    pub(crate) executed_unanswered: bool,
    /// Attempts on which the holder hung up.
    pub(crate) hung_up: u32,
}

impl Claim {
    pub(crate) fn new(user: &str, order_id: String, is_demand: bool) -> Self {
        Self {
            user: user.to_owned(),
            order_id,
            is_demand,
            promised: false,
            shown: false,
            renamed: None,
            denied_after_202: false,
            refused: None,
            in_doubt: false,
            uncertain: 0,
            unanswered: 0,
            executed_unanswered: false,
            hung_up: 0,
        }
    }

    /// Keeps an answer to a press. Returns whether it is the first promise.
    pub(crate) fn hear(&mut self, press: &Press) -> bool {
        let named = match press {
            Press::Accepted { order_id, .. } => Some(order_id),
            Press::Uncertain { order_id, .. } => order_id.as_ref(),
            _ => None,
        };
        if let Some(named) = named.filter(|named| **named != self.order_id) {
            self.renamed = Some(named.clone());
        }
        match press {
            Press::Accepted { .. } => return !std::mem::replace(&mut self.promised, true),
            Press::Refused(refusal, _) => self.refused = Some(*refusal),
            Press::Uncertain { .. } => {
                self.uncertain += 1;
                self.in_doubt = true;
            }
            Press::Strange(_) => self.in_doubt = true,
            Press::Lost(Lost::Unanswered(_)) => {
                self.unanswered += 1;
                self.in_doubt = true;
            }
            Press::Lost(Lost::NotSent(_)) => {}
        }
        false
    }

    /// The holder hung up on a press.
    pub(crate) fn hang_up(&mut self) {
        self.hung_up += 1;
        self.in_doubt = true;
    }

    /// `GET /orders/{id}` showed the order.
    pub(crate) fn see(&mut self) {
        self.shown = true;
        self.in_doubt = false;
    }

    /// `GET /orders/{id}` said 404. That is final for an `uncertain` answer, but not for a request of which nobody knows
    /// whether the server has read it yet.
    pub(crate) fn see_absent(&mut self) {
        if self.promised {
            self.denied_after_202 = true;
        }
        if self.unanswered == 0 && self.hung_up == 0 {
            self.in_doubt = false;
        }
    }

    /// Whether the holder surely tried and surely knows the end.
    pub(crate) fn is_settled(&self) -> bool {
        self.promised || self.shown || (self.refused.is_some_and(|refusal| !refusal.passes_by()))
    }

    /// Every answer was a definite no (or a 404 after the doubt): no unit may be held for it.
    pub(crate) fn is_surely_refused(&self) -> bool {
        !self.promised && !self.shown && !self.in_doubt && self.refused.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim::new("u", "A".into(), true)
    }

    fn accepted(order_id: &str) -> Press {
        Press::Accepted { order_id: order_id.into(), poll_after: std::time::Duration::ZERO }
    }

    #[test]
    fn only_the_first_promise_is_first_and_another_id_is_noticed() {
        let mut claim = claim();
        assert!(claim.hear(&accepted("A")));
        assert!(!claim.hear(&accepted("A")));
        assert_eq!(claim.renamed, None);
        claim.hear(&accepted("B"));
        assert_eq!(claim.renamed.as_deref(), Some("B"));
    }

    #[test]
    fn a_refusal_beside_a_lost_answer_proves_nothing() {
        let mut claim = claim();
        claim.hear(&Press::Refused(Refusal::SoldOut, None));
        assert!(claim.is_surely_refused());
        claim.hear(&Press::Lost(Lost::Unanswered("x".into())));
        assert!(!claim.is_surely_refused());
        claim.see_absent();
        assert!(!claim.is_surely_refused(), "the server may still read that request");
        assert!(claim.is_settled());
    }

    #[test]
    fn an_uncertain_answer_is_settled_by_404_and_a_promise_is_not() {
        let mut claim = claim();
        claim.hear(&Press::Uncertain { order_id: Some("A".into()), retry_after_s: Some(2) });
        assert!(claim.in_doubt && !claim.is_settled());
        claim.see_absent();
        assert!(!claim.in_doubt && !claim.denied_after_202);
        claim.hear(&accepted("A"));
        claim.see_absent();
        assert!(claim.denied_after_202);
    }

    #[test]
    fn a_request_that_never_left_raises_no_doubt() {
        let mut claim = claim();
        claim.hear(&Press::Lost(Lost::NotSent("x".into())));
        assert!(!claim.in_doubt && !claim.is_settled() && !claim.is_surely_refused());
        claim.hang_up();
        assert!(claim.in_doubt);
    }
}

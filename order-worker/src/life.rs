//! What happens to orders after intake: deadlines are kept, what nobody paid is closed, payments come in and find their orders, refunds go out.
//!
//! What a step of an order's life is, and what it leaves, stands in `database/transitions.rs`; here is who takes it, and when. The rows are
//! changed through [`crate::database`] alone.

pub mod closing;
pub mod joining;
pub mod outward;
pub mod payments;
pub mod refunds;
pub mod shop;
pub mod timeouts;

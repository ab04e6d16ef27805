//! What happens to orders after intake, unasked: deadlines are kept, what nobody paid is closed, payments find their orders.
//!
//! What a step of an order's life is, and what it leaves, stands in `database/transitions.rs`; here is who takes it, and when.

mod clocks;
pub mod closing;
pub mod joining;
pub mod timeouts;

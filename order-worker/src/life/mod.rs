//! The life of an order after its row: what comes in from payment providers. Rules only; the rows are changed through
//! [`crate::database`] alone.

pub mod payments;

//! HTTP as it comes and goes: connections, bodies, clients' addresses, problem documents. Knows no sale.

pub(crate) mod body;
pub mod client;
pub(crate) mod connection;
pub mod exposition;
pub(crate) mod mistake;
pub(crate) mod problem;

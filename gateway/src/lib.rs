//! HTTP, passes, challenges, admission and the purchase path. Knows no SQL.
//!
//! Read it from the socket to the log: [`server`] → `http::connection` → `api` → [`purchase`] → `stock::ledger` → `queue`.
#![forbid(unsafe_code)]

mod admin;
pub mod admission;
mod api;
mod background;
pub mod catalog;
pub mod clock;
pub mod conditions;
pub mod config;
mod final_orders;
mod gateway;
mod health;
pub mod http;
pub mod metrics;
pub mod pages;
pub mod ports;
pub mod purchase;
pub mod server;
mod streams;

pub use gateway::{Gateway, GatewayParts, WorkerConditions};

/// Every failpoint of this crate, in the order of the steps. One that fails its step gives the error that the world would.
pub const FAILPOINTS: &[&str] = &[
    "gateway.permitted",
    "gateway.reserving",
    "gateway.reserved",
    "gateway.appending",
    "gateway.appended",
    "gateway.durable",
    "gateway.answered",
    "gateway.recovered",
    "gateway.adopted",
];

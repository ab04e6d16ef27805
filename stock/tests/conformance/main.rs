//! ONE suite per port, run by every adapter: each test knows the port alone.
//!
//! An adapter is a module that names an async factory, which makes a fresh adapter or shares one between tests, and calls
//! `ledger_conformance!(factory)` or `flag_conformance!(factory)`.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

/// One `#[tokio::test]` for each named test of a suite.
macro_rules! conformance_tests {
    ($suite:ident, $factory:ident, $($test:ident),* $(,)?) => {
        mod $suite {
            $(
                #[tokio::test]
                async fn $test() {
                    crate::$suite::$test(super::$factory().await).await;
                }
            )*
        }
    };
}

#[macro_use]
mod flag;
#[macro_use]
mod ledger;

mod embedded;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "simulation")]
mod simulated;
#[cfg(feature = "zookeeper")]
mod zookeeper;

//! ONE suite per port, run by every adapter: each test knows the port alone.
//!
//! An adapter's test file names an async factory that makes a fresh (or shared) adapter:
//! `ledger_conformance!(factory)`, `flag_conformance!(factory)`.

#[macro_use]
pub(crate) mod flag;
#[macro_use]
pub(crate) mod ledger;

/// One `#[tokio::test]` for each named test of a suite.
macro_rules! conformance_tests {
    ($suite:ident, $factory:ident, $($test:ident),* $(,)?) => {
        mod $suite {
            $(
                #[tokio::test]
                async fn $test() {
                    crate::conformance::$suite::$test(super::$factory().await).await;
                }
            )*
        }
    };
}

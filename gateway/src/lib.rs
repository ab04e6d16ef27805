//! HTTP, passes, challenges, admission and the purchase path. Knows no SQL.
#![forbid(unsafe_code)]

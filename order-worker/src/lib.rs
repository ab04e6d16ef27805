//! Drains promised orders into the orders database and keeps database and ledger equal. No HTTP server.
#![forbid(unsafe_code)]

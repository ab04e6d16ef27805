//! The names of all topics and groups, which other systems see too. A name once used is never given another meaning.

/// Promised orders: each gateway's own log has it. See `stock::reservation` for its messages.
pub const ORDERS_TOPIC: &str = "floodgate-orders";
/// Payment deadlines, delivered when they are over: in the log of the worker that wrote the order's row.
pub const TIMEOUTS_TOPIC: &str = "floodgate-timeouts";
/// What happened to orders, for subscribers: in the log of the worker that found it out.
pub const EVENTS_TOPIC: &str = "floodgate-events";
/// Every change of an order's row, for those who must not read the orders database.
pub const CHANGES_TOPIC: &str = "floodgate-changes";

/// The consumer group of [`ORDERS_TOPIC`] whose offset says what has become rows.
pub const DRAIN_GROUP: &str = "order-worker";
/// The consumer group of [`TIMEOUTS_TOPIC`] that closes what was not paid.
pub const CLOSING_GROUP: &str = "closing";

//! The binary on real engines: two gateways and two workers over Redis, ZooKeeper and MariaDB, and what each role says when an
//! engine is not there.

mod audit;
mod behind_nginx;
mod deployments;
mod hunt;
mod lives;
mod mistakes;
mod payments;
mod place;
mod together;
mod worker_log;

//! Real servers on free loopback ports with temporary data: started, killed, frozen, cut, and never left behind.
//!
//! Blocking and without a runtime, so that any test can call it. A handle's `Drop` kills the server's whole process group and
//! removes its directory, also in a panic; what a process cannot clean up itself (it was killed, or it kept its servers in a
//! static) a watchdog does as soon as the process is gone. Only for tests and trials: every password here is in the source.
#![forbid(unsafe_code)]

mod deployment;
mod error;
mod http;
mod mariadb;
mod nginx;
mod ports;
mod process;
mod proxy;
mod redis;
mod sandbox;
mod scratch;
mod sentinel;
pub mod wrong_clock;
mod zookeeper;

pub use deployment::{Deployment, DeploymentOptions, Instance, moment};
pub use error::Error;
pub use http::{Answer, Client};
pub use mariadb::MariaDb;
pub use nginx::Nginx;
pub use ports::Port;
pub use process::{Process, ProcessOptions};
pub use proxy::Proxy;
pub use redis::{AppendFsync, Redis, RedisOptions};
pub use sandbox::{How, Mood, Payment, Sandbox, Service};
pub use scratch::Directory;
pub use sentinel::Sentinel;
pub use zookeeper::{ZooKeeper, ZooKeeperEnsemble, ZooKeeperOptions};

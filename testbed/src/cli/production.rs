//! The production set-up on one machine, as the commands bring it up: every engine, gateways, workers, nginx in front of them,
//! and one sale. It starts and ends; what happens in between is the commands' business.

use std::path::PathBuf;

use clap::ValueEnum;
use testbed::{
    Deployment, DeploymentOptions, Error, MariaDb, Nginx, Port, Process, Redis, RedisOptions, ZooKeeper,
    moment,
};

/// The sale that stands in the configuration.
pub(super) const SALE: &str = "testbed";

#[derive(Debug)]
pub(super) struct Options {
    pub(super) floodgate: PathBuf,
    pub(super) gateways: u8,
    pub(super) workers: u8,
    /// Of nginx.
    pub(super) front: Port,
    pub(super) challenge: Challenge,
    pub(super) orders_per_second_max: u32,
    /// Of [`SALE`].
    pub(super) units: u32,
    /// Of [`SALE`], from now; negative if it is open already.
    pub(super) opens_after_s: i64,
}

/// What is asked before the button.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Challenge {
    Image,
    Off,
}

pub(super) struct Production {
    // In this order: nobody comes in any more, then nobody sells, then nobody keeps books.
    pub(super) nginx: Nginx,
    pub(super) deployment: Deployment,
    pub(super) maria: MariaDb,
    pub(super) zookeeper: ZooKeeper,
    pub(super) redis: Redis,
    /// Of the orders database; it holds the password.
    pub(super) database_url_file: PathBuf,
}

impl Production {
    pub(super) fn start(options: Options) -> Result<Self, Error> {
        eprintln!("starting Redis, ZooKeeper and MariaDB …");
        let redis = Redis::start(RedisOptions::default())?;
        let zookeeper = ZooKeeper::start()?;
        let maria = MariaDb::start()?;
        let database = maria.url("floodgate")?;
        eprintln!("starting {} gateways, {} workers and nginx …", options.gateways, options.workers);
        let deployment = Deployment::start(&DeploymentOptions {
            program: options.floodgate.clone(),
            gateways: options.gateways.into(),
            workers: options.workers.into(),
            toml: configuration(&options, &redis.url(), &zookeeper.connect_string(), &database),
        })?;
        let database_url_file = deployment.keep_secret("database.url", &database)?;
        let nginx = deployment.nginx(options.front)?;
        Ok(Self { nginx, deployment, maria, zookeeper, redis, database_url_file })
    }

    /// Every process, under the name that a person calls it by.
    pub(super) fn processes(&self) -> Vec<(String, &Process)> {
        let mut all: Vec<(String, &Process)> = vec![
            ("nginx".into(), &self.nginx),
            ("redis".into(), &self.redis),
            ("zookeeper".into(), &self.zookeeper),
            ("mariadb".into(), &self.maria),
        ];
        for (index, gateway) in self.deployment.gateways().iter().enumerate() {
            all.push((format!("gateway {}", index + 1), gateway));
        }
        for (index, worker) in self.deployment.workers().iter().enumerate() {
            all.push((format!("worker {}", index + 1), worker));
        }
        all
    }

    /// What the load tester has to be told to play here.
    pub(super) fn as_target(&self) -> Vec<String> {
        let operator = |gateway: &testbed::Instance| format!("http://127.0.0.1:{}", gateway.admin_port());
        let operators: Vec<String> = self.deployment.gateways().iter().map(operator).collect();
        let mut arguments =
            vec!["--target".into(), self.nginx.url(), "--admin-url".into(), operators.join(",")];
        for (option, file) in [
            ("--admin-token-file", self.deployment.admin_token_file()),
            ("--database-url-file", self.database_url_file.clone()),
            ("--jwt-secret-file", self.deployment.jwt_secret_file()),
        ] {
            arguments.extend([option.into(), file.display().to_string()]);
        }
        arguments
    }

    /// In good order: what was promised becomes rows.
    pub(super) fn stop(self) -> Result<(), Error> {
        drop(self.nginx);
        self.deployment.stop()
    }
}

fn configuration(options: &Options, redis: &str, zookeeper: &str, database: &str) -> String {
    let challenge = match options.challenge {
        Challenge::Image => "image",
        Challenge::Off => "off",
    };
    let (opening, end) = (moment(options.opens_after_s), moment(options.opens_after_s + 3_600));
    format!(
        r#"[auth]
demo = true

[gate]
challenge = "{challenge}"
opens_before_s = 600
pass_ttl_s = 600

[limits]
per_user_rps = 20

[stock]
backend = "redis"
redis_urls = ["{redis}"]

[sold_out]
backend = "zookeeper"
zookeeper = "{zookeeper}/floodgate"

[orders]
backend = "mysql"
database_url = "{database}"

[drain]
orders_per_second_max = {orders_per_second_max}

[[sale]]
id = "{SALE}"
title = "A sale of the testbed"
price = 206640
list_price = 688800
total = {units}
starts_at = "{opening}"
ends_at = "{end}"
rehearsal = true
"#,
        orders_per_second_max = options.orders_per_second_max,
        units = options.units,
    )
}

//! Engines that all figures share, a place of its own in them for each, and buyers who promise themselves orders.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use std::path::PathBuf;
use testbed::{
    Answer, Client, Deployment, DeploymentOptions, Error, Instance, MariaDb, Redis, RedisOptions, ZooKeeper,
    moment,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// From the first press to the last answer.
const PRESSES_MAX: Duration = Duration::from_secs(1_800);
const BUYERS_AT_ONCE: u32 = 48;

pub(super) struct Engines {
    pub(super) program: PathBuf,
    pub(super) redis: Redis,
    pub(super) keeper: ZooKeeper,
    pub(super) maria: MariaDb,
    next: AtomicU32,
}

impl Engines {
    pub(super) fn start(program: PathBuf) -> Result<Self, Error> {
        eprintln!("starting Redis, ZooKeeper and MariaDB …");
        let (redis, keeper) = (Redis::start(RedisOptions::default())?, ZooKeeper::start()?);
        Ok(Self { program, redis, keeper, maria: MariaDb::start()?, next: AtomicU32::new(1) })
    }

    /// The name of a place, and the configuration that names it.
    pub(super) fn place(&self) -> Result<(String, String), Error> {
        let name = format!("figures{}", self.next.fetch_add(1, Ordering::Relaxed));
        let toml = self.toml(&name, &self.redis.url())?;
        Ok((name, toml))
    }

    /// The same with another Redis.
    pub(super) fn toml(&self, name: &str, redis: &str) -> Result<String, Error> {
        Ok(format!(
            "[auth]\ndemo = true\n[gate]\nchallenge = \"off\"\nopens_before_s = 600\npass_ttl_s = 600\n\
             [stock]\nbackend = \"redis\"\nredis_urls = [\"{redis}\"]\nkey_prefix = \"{name}\"\n\
             [sold_out]\nbackend = \"zookeeper\"\nzookeeper = \"{}/{name}\"\n\
             [orders]\nbackend = \"mysql\"\ndatabase_url = \"{}\"\n",
            self.keeper.connect_string(),
            self.maria.url(name)?,
        ))
    }
}

/// Gateways and workers with tables and a configuration; none of them runs yet.
pub(super) struct Shop {
    pub(super) name: String,
    pub(super) deployment: Deployment,
}

impl Shop {
    pub(super) fn prepare(engines: &Engines, more: &str) -> Result<Self, Error> {
        let (name, toml) = engines.place()?;
        let deployment = Deployment::prepare(&DeploymentOptions {
            program: engines.program.clone(),
            gateways: 1,
            workers: 1,
            toml: toml + more,
        })?;
        deployment.must(&["migrate", "--apply"])?;
        Ok(Self { name, deployment })
    }

    pub(super) fn gateway(&self) -> &Instance {
        &self.deployment.gateways()[0]
    }

    pub(super) fn worker(&self) -> &Instance {
        &self.deployment.workers()[0]
    }

    /// Records that the drain has not finished, in running and stopped processes.
    pub(super) fn backlog(&self) -> Result<u64, Error> {
        let lags = json(&self.deployment.must(&["queue", "lag", "--json"])?)?;
        let drain = lags.as_array().and_then(|lags| lags.iter().find(|lag| lag["group"] == "order-worker"));
        drain
            .and_then(|lag| lag["records"].as_u64())
            .ok_or_else(|| Error::new(format!("no lag of order-worker in {lags}")))
    }

    /// A number that the orders database answers with.
    pub(super) fn number(&self, engines: &Engines, sql: &str) -> Result<u64, Error> {
        let answer = engines.maria.sql(&self.name, sql)?;
        answer.trim().parse().map_err(|_| Error::new(format!("{sql}: {answer}")))
    }
}

/// One sale of the configuration, open from `opens_after_s` to `ends_after_s`, from now.
pub(super) fn sale(id: &str, total: u32, opens_after_s: i64, ends_after_s: i64, description: &str) -> String {
    format!(
        "[[sale]]\nid = \"{id}\"\ntitle = \"{id}\"\ndescription = \"{description}\"\nprice = 100\ntotal = {total}\n\
         per_user_limit = {total}\nstarts_at = \"{}\"\nends_at = \"{}\"\n",
        moment(opens_after_s),
        moment(ends_after_s)
    )
}

pub(super) fn json(text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::new(format!("{error} in {text}")))
}

/// The sum of a metric over its labels.
pub(super) fn metric(instance: &Instance, name: &str) -> Result<u64, Error> {
    let answer = Client::new(instance.admin_port(), ANSWER_WITHIN).request("GET", "/metrics", &[], "");
    let body = answer.map_err(|error| Error::new(format!("/metrics: {error}")))?.body;
    let lines = body.lines().filter(|line| line.starts_with(name));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}

/// A buyer with a token.
pub(super) struct Buyer {
    client: Client,
    pub(super) bearer: String,
    /// Whom the gateway takes it for: it trusts this machine's word.
    pub(super) address: String,
}

impl Buyer {
    pub(super) fn log_in(gateway: &Instance, number: u32) -> Result<Self, Error> {
        let mut client = Client::new(gateway.buyers_port(), ANSWER_WITHIN);
        let body = format!("{{\"user\":\"buyer-{number}\"}}");
        let answer = client.request("POST", "/api/v1/demo/login", &[JSON], &body);
        let token = field(answer.map_err(told)?, "token")?;
        let address = format!("10.{}.{}.{}", number >> 16 & 0xFF, number >> 8 & 0xFF, number & 0xFF);
        Ok(Self { client, bearer: format!("Bearer {token}"), address })
    }

    pub(super) fn ask(
        &mut self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, Error> {
        let mut headers = vec![JSON, ("Authorization", &*self.bearer), ("X-Forwarded-For", &*self.address)];
        headers.extend(more);
        self.client.request(method, path, &headers, body).map_err(told)
    }

    /// Buys one unit: the order, once it was promised with 202; none if this press was not.
    pub(super) fn buy(&mut self, sale: &str) -> Result<Option<String>, Error> {
        let pass = field(self.ask("POST", &format!("/api/v1/sales/{sale}/passes"), &[], "{}")?, "pass")?;
        let path = format!("/api/v1/sales/{sale}/orders");
        let answer = self.ask("POST", &path, &[("Floodgate-Pass", &pass)], "{}")?;
        if answer.status == 202 { field(answer, "order_id").map(Some) } else { Ok(None) }
    }
}

/// Buyers press until so many orders are promised; answers how long that took.
pub(super) fn promise(gateway: &Instance, sale: &str, orders: u32) -> Result<Duration, Error> {
    let (left, begun) = (AtomicU32::new(orders), Instant::now());
    let buyers: Result<Vec<_>, Error> =
        (0..BUYERS_AT_ONCE.min(orders)).map(|number| Buyer::log_in(gateway, number)).collect();
    let pressed = thread::scope(|scope| {
        let threads: Vec<_> = buyers?
            .into_iter()
            .map(|mut buyer| {
                let left = &left;
                scope.spawn(move || -> Result<(), Error> {
                    let take =
                        || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
                    while take().is_ok() {
                        while buyer.buy(sale)?.is_none() {
                            if begun.elapsed() > PRESSES_MAX {
                                return Err(Error::new("too few orders are promised"));
                            }
                            thread::sleep(Duration::from_millis(20));
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let mut joined = threads.into_iter().map(|thread| thread.join());
        joined.try_for_each(|ended| ended.unwrap_or_else(|_| Err(Error::new("a buyer panicked"))))
    });
    pressed.map(|()| begun.elapsed())
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn told(error: std::io::Error) -> Error {
    Error::new(format!("a gateway: {error}"))
}

fn field(answer: Answer, name: &str) -> Result<String, Error> {
    let value = json(&answer.body)?;
    let text = value[name].as_str().map(str::to_owned);
    text.ok_or_else(|| Error::new(format!("no {name}: {} {}", answer.status, answer.body)))
}

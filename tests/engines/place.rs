//! The engines, started once for all tests, and a place of each test's own in them.

use std::io::Read;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{
    Answer, Client, Deployment, DeploymentOptions, Instance, MariaDb, Redis, RedisOptions, ZooKeeper,
};

/// Longest wait for anything that has to come about.
const COME_ABOUT: Duration = Duration::from_secs(60);

/// The servers; a watchdog ends them with this process.
pub(crate) struct Engines {
    pub(crate) redis: Redis,
    pub(crate) keeper: ZooKeeper,
    pub(crate) maria: MariaDb,
}

pub(crate) static ENGINES: LazyLock<Engines> = LazyLock::new(|| Engines {
    redis: Redis::start(RedisOptions::default()).expect("Redis"),
    keeper: ZooKeeper::start().expect("ZooKeeper"),
    maria: MariaDb::start().expect("MariaDB"),
});

/// Names of a test's own: (database, the three engines' sections).
pub(crate) fn engines_toml() -> (String, String) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let name = format!("engines{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let Engines { redis, keeper, maria } = &*ENGINES;
    let database = maria.url(&name).expect("a database");
    let toml = format!(
        "[stock]\nbackend = \"redis\"\nredis_urls = [\"{}\"]\nkey_prefix = \"{name}\"\n\
         [sold_out]\nbackend = \"zookeeper\"\nzookeeper = \"{}/{name}\"\n\
         [orders]\nbackend = \"mysql\"\ndatabase_url = \"{database}\"\n",
        redis.url(),
        keeper.connect_string(),
    );
    (name, toml)
}

/// What a test's deployment shares beside the engines: no question, the demo's login, one sale.
pub(crate) fn sale_toml(id: &str, total: u32) -> String {
    format!(
        "[auth]\ndemo = true\n[gate]\nchallenge = \"off\"\nopens_before_s = 600\n[limits]\nper_user_rps = 0\n\
         [[sale]]\nid = \"{id}\"\ntitle = \"{id}\"\nprice = 100\ntotal = {total}\nstarts_at = \"{}\"\nends_at = \"{}\"\n",
        testbed::moment(-1),
        testbed::moment(3_600)
    )
}

/// Gateways and workers over places of their own in the engines, ready.
pub(crate) fn deploy(gateways: usize, workers: usize, sale: &str, total: u32) -> Deployment {
    let (_, engines) = engines_toml();
    deploy_with(gateways, workers, engines + &sale_toml(sale, total))
}

/// Gateways and workers of this configuration, ready.
pub(crate) fn deploy_with(gateways: usize, workers: usize, toml: String) -> Deployment {
    let program = env!("CARGO_BIN_EXE_floodgate").into();
    Deployment::start(&DeploymentOptions { program, gateways, workers, toml }).expect("a deployment")
}

/// Asks until `good` likes the answer.
pub(crate) fn wait_for<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let began = Instant::now();
    loop {
        let answer = ask();
        if good(&answer) {
            return answer;
        }
        assert!(began.elapsed() < COME_ABOUT, "no {what}; last: {answer:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One call on a gateway's buyers' side. No answer counts as status 0.
pub(crate) fn call(
    gateway: &Instance,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut headers = headers.to_vec();
    headers.push(("Content-Type", "application/json"));
    Client::new(gateway.buyers_port(), Duration::from_secs(20))
        .request(method, path, &headers, body)
        .unwrap_or_else(|error| Answer { status: 0, body: error.to_string() })
}

pub(crate) fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// A user with a pass: (token, pass, order).
pub(crate) fn pass(gateway: &Instance, sale: &str, user: &str) -> (String, String, String) {
    let login = call(gateway, "POST", "/api/v1/demo/login", &[], &format!("{{\"user\":\"{user}\"}}"));
    assert_eq!(login.status, 200, "{login:?}");
    let bearer = format!("Bearer {}", json(&login)["token"].as_str().expect("a token"));
    let pass =
        call(gateway, "POST", &format!("/api/v1/sales/{sale}/passes"), &[("Authorization", &bearer)], "{}");
    assert_eq!(pass.status, 201, "{pass:?}");
    let text = |name: &str| json(&pass)[name].as_str().expect("a text").to_owned();
    (bearer, text("pass"), text("order_id"))
}

/// Presses the button until the answer is a yes or a no: where the machine is busy enough, any attempt may end as `busy` or
/// `uncertain`, and the same pass again is what a buyer does then.
pub(crate) fn press(gateway: &Instance, sale: &str, pass: &str) -> Answer {
    let path = format!("/api/v1/sales/{sale}/orders");
    let press = || call(gateway, "POST", &path, &[("Floodgate-Pass", pass)], "{}");
    wait_for("answer", press, |answer| ![0, 503].contains(&answer.status))
}

/// Asks a gateway for an order until it has this status.
pub(crate) fn wait_for_status(gateway: &Instance, order: &str, pass: &str, status: &str) {
    let path = format!("/api/v1/orders/{order}");
    let ask = || call(gateway, "GET", &path, &[("Floodgate-Pass", pass)], "");
    wait_for(status, ask, |answer| answer.status == 200 && json(answer)["status"] == status);
}

/// The operator's figures of a sale, as this gateway gives them.
pub(crate) fn figures(deployment: &Deployment, gateway: &Instance, sale: &str) -> Value {
    let token = std::fs::read_to_string(deployment.admin_token_file()).expect("a token");
    let bearer = format!("Bearer {}", token.trim());
    let answer = Client::new(gateway.admin_port(), Duration::from_secs(20))
        .request("GET", &format!("/admin/v1/sales/{sale}"), &[("Authorization", &bearer)], "")
        .unwrap_or_else(|error| Answer { status: 0, body: Value::String(error.to_string()).to_string() });
    json(&answer)
}

/// The directories that a worker drains at the moment.
pub(crate) fn drained_by(worker: &Instance) -> Vec<String> {
    let Ok(ready) = serde_json::from_str::<Value>(&worker.readiness()) else { return Vec::new() };
    let sources = ready["sources"].as_array().cloned().unwrap_or_default();
    let draining = sources.iter().filter(|source| source["state"] == "draining");
    draining.filter_map(|source| source["log"].as_str().map(str::to_owned)).collect()
}

/// The all-in-one, at the listeners of one gateway of a deployment that does not run. Killed when dropped.
pub(crate) struct Alone(std::process::Child);

impl Alone {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(deployment: &Deployment, gateway: &Instance) -> Self {
        let mut alone = Self(Self::command(deployment, gateway).spawn().expect("the binary starts"));
        wait_for(
            "readiness",
            || (alone.0.try_wait().expect("a child of ours"), gateway.is_ready()),
            |(ended, ready)| {
                assert!(ended.is_none(), "it ended while starting: {ended:?}");
                *ready
            },
        );
        alone
    }

    /// Starts it where it has to end by itself; what it said.
    pub(crate) fn fails(deployment: &Deployment, gateway: &Instance) -> String {
        let child = Self::command(deployment, gateway).stderr(std::process::Stdio::piped()).spawn();
        let mut alone = Self(child.expect("the binary starts"));
        let mut words = alone.0.stderr.take().expect("it is piped");
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            words.read_to_string(&mut said).map(|_| said)
        });
        let ended = wait_for("end", || alone.0.try_wait().expect("a child of ours"), Option::is_some);
        let said = said.join().expect("no panic").expect("text");
        assert_eq!(ended.and_then(|status| status.code()), Some(1), "{said}");
        said
    }

    /// Ends it as an operator does, and waits until it has.
    pub(crate) fn stop(mut self) {
        let told = std::process::Command::new("kill").arg(self.0.id().to_string()).status().expect("kill");
        assert!(told.success());
        let ended = wait_for("end", || self.0.try_wait().expect("a child of ours"), Option::is_some);
        assert!(ended.is_some_and(|status| status.success()), "a clean end: {ended:?}");
    }

    fn command(deployment: &Deployment, gateway: &Instance) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_floodgate"));
        command
            .arg("--config")
            .arg(deployment.config_file())
            .envs(deployment.environment(gateway))
            .env("FLOODGATE_GATEWAY__LISTEN", format!("127.0.0.1:{}", gateway.buyers_port()))
            .stdin(std::process::Stdio::null());
        command
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

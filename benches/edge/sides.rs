//! The two that are compared: each starts its servers, signs passes beforehand, and knows their processor time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use gateway::admission::pass::{Pass, PassKeys};
use gateway::config::{GateConfig, PassSecret, Secret};
use stock::{OrderId, SaleId};
use testbed::{
    AppendFsync, Client, Deployment, DeploymentOptions, MariaDb, Nginx, Redis, RedisOptions, ZooKeeper,
    moment,
};

const PATH: &str = "/api/v1/sales/bench/orders";
/// Of a sale with a single unit.
const PATH_OF_ONE: &str = "/api/v1/sales/one/orders";
const BODY: &str = r#"{"quantity":1}"#;
const SECRET: &str = "a-secret-of-the-bench-that-everybody-may-know";
const UNITS: u32 = 1_000_000_000;
const WITHIN: Duration = Duration::from_secs(60);
/// Passes that the rival signs a request.
const SIGNED_AT_ONCE: usize = 1_000;

/// Something that sells.
pub(crate) trait Side {
    /// Where to press.
    fn port(&self) -> u16;
    /// So many presses, of as many users who have not pressed yet.
    fn requests(&mut self, count: usize) -> Vec<Vec<u8>>;
    /// Used so far: by what speaks HTTP, and by Redis.
    fn cpu(&self) -> [Duration; 2];
}

/// A gateway as in production: ledger in Redis, log on disk. Its worker has gone after the start.
pub(crate) struct Floodgate {
    deployment: Deployment,
    passes: PassKeys,
    next: usize,
    redis: Redis,
    _keeper: ZooKeeper,
    _maria: MariaDb,
}

impl Floodgate {
    pub(crate) fn start(appendfsync: AppendFsync) -> Self {
        let (redis, keeper, maria) =
            (start_redis(appendfsync), ZooKeeper::start().unwrap(), MariaDb::start().unwrap());
        let toml = configuration(&redis.url(), &keeper.connect_string(), &maria.url("floodgate").unwrap());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_floodgate"));
        let options = DeploymentOptions { program, gateways: 1, workers: 1, toml };
        let deployment = Deployment::start(&options).unwrap();
        let secret = std::fs::read_to_string(deployment.pass_secret_file()).unwrap();
        let secret = PassSecret { id: "k1".into(), secret: Some(Secret::new(secret)), secret_file: None };
        let passes = PassKeys::new(&GateConfig { pass_secrets: vec![secret], ..Default::default() }).unwrap();
        let mut floodgate = Self { deployment, passes, next: 0, redis, _keeper: keeper, _maria: maria };
        floodgate.wait_until_it_sells();
        for worker in floodgate.deployment.workers() {
            worker.stop().unwrap();
        }
        floodgate
    }

    fn pass(&mut self, sale: &str) -> String {
        self.next += 1;
        let sale: SaleId = sale.parse().unwrap();
        // As real ones: time, sale, random bits.
        let order_id = OrderId::new(
            1_700_000_000_000 + self.next as u64 / 20,
            &sale,
            (self.next as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        );
        let user = format!("user-{}", self.next).parse().unwrap();
        self.passes.issue(&Pass { sale, user, order_id, expires_at_ms: u64::MAX })
    }

    fn wait_until_it_sells(&mut self) {
        let deadline = Instant::now() + WITHIN;
        let mut client = Client::new(self.port(), WITHIN);
        loop {
            let pass = self.pass("bench");
            let answer = client.request("POST", PATH, &[("Floodgate-Pass", &pass)], BODY).unwrap();
            if answer.status == 202 {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sells the only unit of a sale. Returns a press that is refused from now on, and what it hears.
    pub(crate) fn sell_out(&mut self) -> (Vec<u8>, String) {
        let deadline = Instant::now() + WITHIN;
        let mut client = Client::new(self.port(), WITHIN);
        loop {
            let pass = self.pass("one");
            let answer = client.request("POST", PATH_OF_ONE, &[("Floodgate-Pass", &pass)], BODY).unwrap();
            if answer.status == 410 {
                return (refused_request(&pass), answer.body);
            }
            assert!(Instant::now() < deadline, "{answer:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Side for Floodgate {
    fn port(&self) -> u16 {
        self.deployment.gateways()[0].buyers_port()
    }

    fn requests(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| request(&self.pass("bench"))).collect()
    }

    fn cpu(&self) -> [Duration; 2] {
        [self.deployment.gateways()[0].cpu(), self.redis.cpu()]
    }
}

/// nginx with Lua and a Redis: `rival/`.
pub(crate) struct Rival {
    nginx: Nginx,
    next: usize,
    redis: Redis,
}

impl Rival {
    pub(crate) fn start(appendfsync: AppendFsync) -> Self {
        let redis = start_redis(appendfsync);
        redis.command(&["SET", "units", &UNITS.to_string()]).unwrap();
        let take = redis.command(&["SCRIPT", "LOAD", include_str!("rival/take.lua")]).unwrap();
        let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/edge/rival");
        let nginx = Nginx::start(|port| {
            format!(
                "keepalive_requests 1000000;\n\
                 init_by_lua_block {{ package.loaded.rival = {{ port = {}, take = '{take}', secret = '{SECRET}' }} }}\n\
                 server {{\nlisten 127.0.0.1:{port} reuseport;\n\
                 location = {PATH} {{ content_by_lua_file {scripts}/press.lua; }}\n\
                 location = /sign {{ content_by_lua_file {scripts}/sign.lua; }}\n}}",
                redis.port()
            )
        });
        Self { nginx: nginx.unwrap(), next: 0, redis }
    }
}

impl Side for Rival {
    fn port(&self) -> u16 {
        self.nginx.port()
    }

    fn requests(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut client = Client::new(self.port(), WITHIN);
        let mut requests = Vec::with_capacity(count);
        while requests.len() < count {
            let path = format!("/sign?from={}&count={SIGNED_AT_ONCE}", self.next);
            self.next += SIGNED_AT_ONCE;
            let passes = client.request("GET", &path, &[], "").unwrap();
            assert_eq!(passes.status, 200, "{passes:?}\n{}", self.nginx.log());
            requests.extend(passes.body.lines().map(request));
        }
        requests.truncate(count);
        requests
    }

    fn cpu(&self) -> [Duration; 2] {
        [self.nginx.cpu(), self.redis.cpu()]
    }
}

/// An nginx whose whole logic is `refuse`, with what it says.
pub(crate) fn refusing_nginx(http: &str, refuse: &str) -> Nginx {
    let nginx = Nginx::start(|port| {
        format!(
            "keepalive_requests 100000000;\n{http}\n\
             server {{\nlisten 127.0.0.1:{port} reuseport;\nlocation = {PATH_OF_ONE} {{\n{refuse}\n}}\n}}"
        )
    });
    nginx.unwrap()
}

fn start_redis(appendfsync: AppendFsync) -> Redis {
    // A rewrite of the file would be another process, which comes and goes.
    let config = vec![("auto-aof-rewrite-percentage".to_owned(), "0".to_owned())];
    Redis::start(RedisOptions { appendfsync, config, ..Default::default() }).unwrap()
}

fn request(pass: &str) -> Vec<u8> {
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: bench\r\nFloodgate-Pass: {pass}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
    .into_bytes()
}

/// The same with a user's token, as pages send it.
fn refused_request(pass: &str) -> Vec<u8> {
    // As long as a real one; nobody looks at it.
    let token = ["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", &"x".repeat(86), &"y".repeat(43)].join(".");
    format!(
        "POST {PATH_OF_ONE} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nFloodgate-Pass: {pass}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
    .into_bytes()
}

fn configuration(redis: &str, keeper: &str, database: &str) -> String {
    let (opening, end) = (moment(-60), moment(3_600));
    format!(
        r#"[auth]
mode = "trusted-header"

[gate]
challenge = "off"

[stock]
backend = "redis"
redis_urls = ["{redis}"]

[sold_out]
backend = "zookeeper"
zookeeper = "{keeper}/floodgate"

[orders]
backend = "mysql"
database_url = "{database}"

[[sale]]
id = "bench"
title = "A sale of the bench"
price = 206640
total = {UNITS}
starts_at = "{opening}"
ends_at = "{end}"

[[sale]]
id = "one"
title = "A sale that is over in a moment"
price = 206640
total = 1
starts_at = "{opening}"
ends_at = "{end}"
"#
    )
}

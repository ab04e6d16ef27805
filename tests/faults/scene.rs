//! The servers of one fault, and the play: warm up, strike, recover, sell out, come to rest, be judged.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{
    AppendFsync, Client, Deployment, DeploymentOptions, Instance, MariaDb, Nginx, Port, Proxy, Redis,
    RedisOptions, Sentinel, ZooKeeper, ZooKeeperEnsemble, moment,
};

use crate::crowd::Crowd;
use crate::verdict;

pub(crate) const SALE: &str = "spike";
const DATABASE: &str = "floodgate";
/// Enough for the longest strike at the crowd's gentle pace, little enough to be sold in seconds at its full pace.
const UNITS: u64 = 6_000;
/// Buyers that have heard yes before anything strikes.
const WARM: u64 = 800;
/// Slower than the crowd's full pace: a strike finds promises in the logs that are no rows yet.
const DRAINED_PER_SECOND: u32 = 1_000;
/// For so long after the strike began the crowd goes on at its full pace: there are batches under way that it hits.
const RUSH: Duration = Duration::from_millis(250);
/// A bound on every wait, for a machine that is busy with other things: sentinels alone may stand still for 30 s and more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);
const OPERATOR_WITHIN: Duration = Duration::from_secs(5);

/// How much of what was promised a fault may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Loses {
    Nothing,
    /// Orders promised from a memory that had forgotten others may be rejected.
    BetweenAmnesiaAndNotice,
    /// A log that is gone with its disk takes the orders with it that nobody else knew.
    OneLog,
}

/// What a scene is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    appendfsync: AppendFsync,
    sentinel: bool,
    ensemble: bool,
    nginx: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { appendfsync: AppendFsync::Everysec, sentinel: false, ensemble: false, nginx: false }
    }
}

impl Layout {
    /// Redis keeps nothing.
    pub(crate) fn forgetful() -> Self {
        Self { appendfsync: AppendFsync::Off, ..Self::default() }
    }

    /// A primary, a replica, three sentinels.
    pub(crate) fn sentinel() -> Self {
        Self { sentinel: true, ..Self::default() }
    }

    /// Three ZooKeeper servers.
    pub(crate) fn ensemble() -> Self {
        Self { ensemble: true, ..Self::default() }
    }

    /// Buyers know nginx only.
    pub(crate) fn behind_nginx() -> Self {
        Self { nginx: true, ..Self::default() }
    }
}

/// One line of the table.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) layout: Layout,
    pub(crate) loses: Loses,
    pub(crate) strike: fn(&Scene),
}

enum Ledger {
    Single(Redis, Proxy),
    Watched(Sentinel),
}

#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Keeper {
    Single(ZooKeeper, Proxy),
    Ensemble(ZooKeeperEnsemble),
}

/// Everything that a strike may lay hands on.
pub(crate) struct Scene {
    pub(crate) crowd: Arc<Crowd>,
    nginx: Option<Nginx>,
    pub(crate) deployment: Deployment,
    ledger: Ledger,
    keeper: Keeper,
    pub(crate) maria: MariaDb,
    pub(crate) maria_proxy: Proxy,
}

impl Fault {
    pub(crate) fn play(&self) {
        static MACHINE: Mutex<()> = Mutex::new(());
        // Two cores: a second scene beside it would only make both slow.
        let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let scene = Scene::set(&self.layout);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.play_on(&scene)));
        if let Err(panic) = outcome {
            scene.crowd.go_home();
            eprintln!("{}", scene.last_words());
            std::panic::resume_unwind(panic);
        }
    }

    fn play_on(&self, scene: &Scene) {
        let players = scene.crowd.clone().begin();
        scene.until("the sale runs", || scene.crowd.promised() >= WARM);
        let (promised_before, struck) = (scene.crowd.promised(), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(RUSH);
                scene.crowd.calm_down();
            });
            (self.strike)(scene);
        });
        let (promised_during, over) = (scene.crowd.promised() - promised_before, Instant::now());
        // Wherever buyers knock they are sold something again: the fault is over for them.
        let recovered: Vec<Duration> = scene
            .doors()
            .into_iter()
            .map(|port| {
                scene.until("a gateway sells again", || scene.crowd.one_more_at(port));
                over.elapsed()
            })
            .collect();
        scene.crowd.hurry();
        players.into_iter().for_each(|player| player.join().unwrap());
        let rest = Instant::now();
        let books = scene.come_to_rest();
        let rest = rest.elapsed();

        let verdict = verdict::judge(&scene.crowd.claims(), &books);
        // Past the test runner's capture, so that the table can be read without failing first.
        let _ = writeln!(
            std::io::stderr(),
            "fault {:<46} lasted {:>5.1} s ({} sold in it), sells again after {:>4.1} s, at rest after {:>4.1} s: {verdict}",
            self.name,
            (over - struck).as_secs_f64(),
            promised_during,
            recovered.iter().max().map_or(0.0, Duration::as_secs_f64),
            rest.as_secs_f64(),
        );
        verdict.hold(self.loses);
        scene.deployment.must(&["audit"]).unwrap();
    }
}

impl Scene {
    fn set(layout: &Layout) -> Self {
        let maria = MariaDb::start().unwrap();
        maria.url(DATABASE).unwrap();
        let maria_proxy = Proxy::start(maria.port()).unwrap();
        let (ledger, stock) = if layout.sentinel {
            let sentinel = Sentinel::start_with(1, layout.appendfsync).unwrap();
            let urls = sentinel.sentinel_urls();
            let stock = format!(
                "redis_mode = \"sentinel\"\nredis_urls = {urls:?}\nsentinel_master = \"{}\"",
                sentinel.master_name()
            );
            (Ledger::Watched(sentinel), stock)
        } else {
            let options = RedisOptions { appendfsync: layout.appendfsync, ..Default::default() };
            let redis = Redis::start(options).unwrap();
            let proxy = Proxy::start(redis.port()).unwrap();
            let stock = format!("redis_urls = [\"redis://127.0.0.1:{}\"]", proxy.port());
            (Ledger::Single(redis, proxy), stock)
        };
        let (keeper, zookeeper) = if layout.ensemble {
            let ensemble = ZooKeeperEnsemble::start().unwrap();
            let zookeeper = ensemble.connect_string();
            (Keeper::Ensemble(ensemble), zookeeper)
        } else {
            let keeper = ZooKeeper::start().unwrap();
            let proxy = Proxy::start(keeper.port()).unwrap();
            let zookeeper = format!("127.0.0.1:{}", proxy.port());
            (Keeper::Single(keeper, proxy), zookeeper)
        };
        let deployment = Deployment::start(&DeploymentOptions {
            program: PathBuf::from(env!("CARGO_BIN_EXE_floodgate")),
            gateways: 2,
            workers: 2,
            toml: configuration(&stock, &zookeeper, maria_proxy.port()),
        })
        .unwrap();
        let nginx = layout.nginx.then(|| deployment.nginx(Port::claim().unwrap()).unwrap());
        let ports = match &nginx {
            Some(nginx) => vec![nginx.port()],
            None => deployment.gateways().iter().map(Instance::buyers_port).collect(),
        };
        let crowd = Arc::new(Crowd::new(SALE, ports, UNITS * 3 / 2));
        Self { crowd, nginx, deployment, ledger, keeper, maria, maria_proxy }
    }

    /// The one Redis.
    pub(crate) fn redis(&self) -> &Redis {
        match &self.ledger {
            Ledger::Single(redis, _) => redis,
            Ledger::Watched(sentinel) => sentinel.primary(),
        }
    }

    /// What stands between the one Redis and the processes.
    pub(crate) fn redis_proxy(&self) -> &Proxy {
        match &self.ledger {
            Ledger::Single(_, proxy) => proxy,
            Ledger::Watched(_) => panic!("this scene has sentinels"),
        }
    }

    pub(crate) fn sentinel(&self) -> &Sentinel {
        match &self.ledger {
            Ledger::Watched(sentinel) => sentinel,
            Ledger::Single(..) => panic!("this scene has no sentinels"),
        }
    }

    pub(crate) fn zookeeper(&self) -> (&ZooKeeper, &Proxy) {
        match &self.keeper {
            Keeper::Single(keeper, proxy) => (keeper, proxy),
            Keeper::Ensemble(_) => panic!("this scene has an ensemble"),
        }
    }

    pub(crate) fn ensemble(&self) -> &ZooKeeperEnsemble {
        match &self.keeper {
            Keeper::Ensemble(ensemble) => ensemble,
            Keeper::Single(..) => panic!("this scene has one ZooKeeper"),
        }
    }

    pub(crate) fn nginx(&self) -> &Nginx {
        self.nginx.as_ref().expect("this scene has no nginx")
    }

    /// Where buyers knock.
    fn doors(&self) -> Vec<u16> {
        match &self.nginx {
            Some(nginx) => vec![nginx.port()],
            None => self.gateways().map(Instance::buyers_port).collect(),
        }
    }

    /// Gateways whose process lives.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = &Instance> {
        self.deployment.gateways().iter().filter(|gateway| gateway.is_running())
    }

    /// Waits for a condition; a scene that never gets there is a broken one.
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "never, within {PATIENCE:?}: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until so many more buyers have heard yes.
    pub(crate) fn until_sold(&self, more: u64) {
        let goal = self.crowd.promised() + more;
        self.until(&format!("{more} more are sold"), || self.crowd.promised() >= goal);
    }

    /// Waits until buyers have felt it: so many more attempts ended without a yes or a no.
    pub(crate) fn until_felt(&self, more: u64) {
        let goal = self.crowd.troubled() + more;
        self.until(&format!("{more} more attempts are in trouble"), || self.crowd.troubled() >= goal);
    }

    /// Waits until so many orders are promised and not yet drained.
    pub(crate) fn until_backlog(&self, orders: u64) {
        // The operator's figures would ask the database, which may be what is away.
        let backlog = |gateway: &Instance| {
            let mut client = Client::new(gateway.admin_port(), OPERATOR_WITHIN);
            let metrics = client.request("GET", "/metrics", &[], "").ok()?.body;
            let line = metrics.lines().find(|line| line.starts_with("floodgate_backlog_orders"))?;
            line.rsplit(' ').next()?.parse::<u64>().ok()
        };
        self.until(&format!("{orders} orders wait in the logs"), || {
            self.gateways().filter_map(backlog).sum::<u64>() >= orders
        });
    }

    /// An operator's call to one gateway.
    pub(crate) fn operate(&self, gateway: &Instance, method: &str, path: &str, body: &str) -> Option<Value> {
        let token = std::fs::read_to_string(self.deployment.admin_token_file()).unwrap();
        let bearer = format!("Bearer {}", token.trim());
        let answer = Client::new(gateway.admin_port(), OPERATOR_WITHIN)
            .request(method, path, &[("Authorization", &bearer), ("Content-Type", "application/json")], body)
            .ok()?;
        (answer.status == 200).then(|| serde_json::from_str(&answer.body).ok())?
    }

    /// The ledger's life in force.
    pub(crate) fn epoch(&self) -> u64 {
        let read = "SELECT value FROM floodgate_meta WHERE name = 'epoch'";
        self.maria.sql(DATABASE, read).unwrap().trim().parse().unwrap()
    }

    fn figures(&self, gateway: &Instance) -> Option<Value> {
        self.operate(gateway, "GET", &format!("/admin/v1/sales/{SALE}"), "")
    }

    /// Waits until every living gateway says that nothing is outstanding, and the rows say the same; then reads everything.
    fn come_to_rest(&self) -> verdict::Books {
        let mut figures = Vec::new();
        self.until("everything is at rest", || {
            figures = self.gateways().filter_map(|gateway| self.figures(gateway)).collect();
            !figures.is_empty()
                && figures.len() == self.gateways().count()
                && figures.iter().all(|figures| figures["at_rest"] == true && figures["pending"] == 0)
        });
        let sql = |statement: &str| self.maria.sql(DATABASE, statement).unwrap();
        let sale = sql("SELECT total, sold FROM floodgate_sales");
        let rows = sql("SELECT order_id, user_id, units_held, status FROM floodgate_orders");
        verdict::Books::read(&figures, &sale, &rows)
    }

    /// What the processes said last, for whoever has to find out why.
    fn last_words(&self) -> String {
        let mut text = format!("crowd: {}\n", self.crowd.summary());
        for instance in self.deployment.instances() {
            let log = instance.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n  | ");
            text.push_str(&format!("{} {}\n  | {tail}\n", instance.admin_port(), instance.readiness()));
        }
        for gateway in self.gateways() {
            text.push_str(&format!("{:?}\n", self.figures(gateway)));
        }
        text
    }
}

fn configuration(stock: &str, zookeeper: &str, maria: u16) -> String {
    let (opening, end) = (moment(-60), moment(3_600));
    format!(
        r#"[auth]
mode = "trusted-header"

[gate]
challenge = "off"
pass_ttl_s = 600

[limits]
per_user_rps = 0

[stock]
backend = "redis"
{stock}

[sold_out]
backend = "zookeeper"
zookeeper = "{zookeeper}/floodgate"

[drain]
orders_per_second_max = {DRAINED_PER_SECOND}

[orders]
backend = "mysql"
database_url = "mysql://floodgate:floodgate@127.0.0.1:{maria}/{DATABASE}"

[[sale]]
id = "{SALE}"
title = "A sale under fire"
price = 1990
total = {UNITS}
starts_at = "{opening}"
ends_at = "{end}"
rehearsal = true
"#
    )
}

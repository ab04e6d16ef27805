//! What strikes a scene. Each begins with a sale that runs and returns when its cause is over; what must hold afterwards is
//! no business of these.

use std::thread;
use std::time::Duration;

use serde_json::json;
use testbed::Client;

use crate::scene::{SALE, Scene};

/// Attempts in trouble before a fault ends that buyers are to feel.
const FELT: u64 = 20;

/// How long an engine stays away at least: a backlog grows, buyers are refused again and again.
const AWAY: Duration = Duration::from_secs(2);
/// How long a fault lasts that is about lasting: leases and sessions end meanwhile.
const LONG: Duration = Duration::from_secs(10);

pub(crate) fn nothing(scene: &Scene) {
    scene.until_sold(50);
}

pub(crate) fn redis_killed(scene: &Scene) {
    scene.redis().kill().unwrap();
    scene.until_felt(FELT);
    thread::sleep(AWAY);
    scene.redis().restart().unwrap();
}

pub(crate) fn redis_killed_again_in_its_rebuild(scene: &Scene) {
    for _ in 0..3 {
        redis_killed(scene);
    }
    scene.until_sold(20);
    redis_killed(scene);
}

/// Calls that timed out are carried out when it thaws.
pub(crate) fn redis_frozen(scene: &Scene) {
    scene.redis().freeze().unwrap();
    thread::sleep(LONG);
    scene.redis().thaw().unwrap();
}

pub(crate) fn redis_failed_over(scene: &Scene) {
    let old = scene.sentinel().primary();
    old.kill().unwrap();
    scene.sentinel().wait_for_other_primary(old).unwrap();
}

/// The replica has missed the last hundred orders.
pub(crate) fn lagging_replica_promoted(scene: &Scene) {
    let sentinel = scene.sentinel();
    sentinel.replicas()[0].command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    scene.until_sold(100);
    redis_failed_over(scene);
}

pub(crate) fn redis_flushed(scene: &Scene) {
    scene.redis().command(&["FLUSHALL"]).unwrap();
}

pub(crate) fn redis_out_of_memory(scene: &Scene) {
    scene.redis().command(&["CONFIG", "SET", "maxmemory", "1mb"]).unwrap();
    scene.until_felt(FELT);
    thread::sleep(AWAY);
    scene.redis().command(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
}

/// What an old primary is once it has been told that it is one no more.
pub(crate) fn redis_read_only(scene: &Scene) {
    scene.redis().command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    scene.until_felt(FELT);
    thread::sleep(AWAY);
    scene.redis().command(&["REPLICAOF", "NO", "ONE"]).unwrap();
}

pub(crate) fn redis_cut_off(scene: &Scene) {
    scene.redis_proxy().stall();
    scene.until_felt(FELT);
    thread::sleep(AWAY);
    scene.redis_proxy().cut().unwrap();
    scene.until_felt(FELT);
    thread::sleep(AWAY);
    scene.redis_proxy().heal().unwrap();
}

pub(crate) fn redis_answers_lost(scene: &Scene) {
    let before = scene.redis_proxy().swallowed();
    scene.redis_proxy().drop_replies(true);
    scene.until("answers are lost", || scene.redis_proxy().swallowed() > before + 20);
    thread::sleep(AWAY);
    scene.redis_proxy().drop_replies(false);
}

/// Nobody needs it to sell.
pub(crate) fn zookeeper_killed(scene: &Scene) {
    let (keeper, _) = scene.zookeeper();
    keeper.kill().unwrap();
    scene.until_sold(100);
    thread::sleep(AWAY);
    keeper.restart().unwrap();
}

pub(crate) fn zookeeper_sessions_expired(scene: &Scene) {
    let (keeper, _) = scene.zookeeper();
    keeper.freeze().unwrap();
    thread::sleep(LONG * 2);
    keeper.thaw().unwrap();
}

pub(crate) fn zookeeper_leader_killed(scene: &Scene) {
    let ensemble = scene.ensemble();
    let old = ensemble.leader().unwrap();
    old.kill().unwrap();
    scene.until_sold(50);
    ensemble.leader().unwrap();
    thread::sleep(AWAY);
    old.restart().unwrap();
}

pub(crate) fn zookeeper_cut_off(scene: &Scene) {
    let (_, proxy) = scene.zookeeper();
    proxy.stall();
    scene.until_sold(200);
    thread::sleep(AWAY);
    proxy.cut().unwrap();
    scene.until_sold(200);
    thread::sleep(AWAY);
    proxy.heal().unwrap();
}

/// Batches are under way when it dies; gateways go on promising.
pub(crate) fn mariadb_killed(scene: &Scene) {
    scene.maria.kill().unwrap();
    scene.until_sold(200);
    thread::sleep(AWAY);
    scene.until_backlog(200);
    // A balancer that took them out would end the sale.
    for gateway in scene.gateways() {
        scene.until("its absence is told", || gateway.readiness().contains("\"orders-away\""));
        assert!(gateway.is_ready(), "{}", gateway.readiness());
    }
    scene.until_sold(50);
    scene.maria.restart().unwrap();
}

/// Commits are carried out and nobody hears of it: now and then, and then for longer.
pub(crate) fn mariadb_answers_lost(scene: &Scene) {
    for _ in 0..5 {
        let before = scene.maria_proxy.swallowed();
        scene.maria_proxy.drop_replies(true);
        scene.until("answers are lost", || scene.maria_proxy.swallowed() > before);
        scene.maria_proxy.drop_replies(false);
        scene.until_sold(20);
    }
    scene.maria_proxy.drop_replies(true);
    thread::sleep(AWAY);
    scene.maria_proxy.drop_replies(false);
}

pub(crate) fn mariadb_frozen(scene: &Scene) {
    scene.maria.freeze().unwrap();
    thread::sleep(LONG);
    scene.maria.thaw().unwrap();
}

/// The other one takes its logs over.
pub(crate) fn worker_killed(scene: &Scene) {
    scene.deployment.workers()[0].kill().unwrap();
    scene.until_sold(100);
    thread::sleep(AWAY);
}

pub(crate) fn workers_killed_in_turn(scene: &Scene) {
    for worker in scene.deployment.workers().iter().cycle().take(6) {
        worker.kill().unwrap();
        scene.until_sold(50);
        worker.start().unwrap();
    }
}

pub(crate) fn gateway_killed_and_back(scene: &Scene) {
    for gateway in scene.deployment.gateways() {
        gateway.kill().unwrap();
        scene.until_sold(50);
        gateway.start().unwrap();
    }
}

pub(crate) fn gateway_frozen_beyond_its_lease(scene: &Scene) {
    let gateway = &scene.deployment.gateways()[0];
    gateway.freeze().unwrap();
    thread::sleep(LONG * 2);
    gateway.thaw().unwrap();
}

/// By its own clock the sale has not begun. The ledger's counts.
pub(crate) fn gateways_clock_is_slow(scene: &Scene) {
    let gateway = &scene.deployment.gateways()[0];
    gateway.stop().unwrap();
    gateway.set_clock_wrong_by(-300).unwrap();
    gateway.start().unwrap();
    scene.until_sold(100);
}

/// It holds reservations that others have to finish.
pub(crate) fn gateway_killed_for_good(scene: &Scene) {
    scene.deployment.gateways()[0].kill().unwrap();
    scene.until_sold(50);
    thread::sleep(AWAY);
}

pub(crate) fn gateway_killed_for_good_and_its_disk_deleted(scene: &Scene) {
    let gateway = &scene.deployment.gateways()[0];
    gateway.kill().unwrap();
    std::fs::remove_dir_all(gateway.log_directory().unwrap()).unwrap();
    scene.until_sold(50);
}

/// Redis has forgotten everything while a log is out of reach: nobody sells until the operator says to do without it.
pub(crate) fn flushed_with_a_log_out_of_reach(scene: &Scene) {
    let gateway = &scene.deployment.gateways()[0];
    gateway.kill().unwrap();
    // Workers that are attached would read on in the deleted files.
    for worker in scene.deployment.workers() {
        worker.kill().unwrap();
    }
    std::fs::remove_dir_all(gateway.log_directory().unwrap()).unwrap();
    redis_flushed(scene);
    for worker in scene.deployment.workers() {
        worker.start().unwrap();
    }
    let waiting = || -> Option<String> {
        let shown = scene.deployment.must(&["ledger", "instances", "--json"]).ok()?;
        let shown: serde_json::Value = serde_json::from_str(&shown).ok()?;
        let awaited = shown.as_array()?.iter().find(|instance| instance["awaited"] == true)?;
        awaited["instance"].as_str().map(str::to_owned)
    };
    let mut log = None;
    scene.until("the rebuild waits for one log", || {
        log = waiting();
        log.is_some()
    });
    let log = log.unwrap();
    let sold = scene.crowd.promised();
    scene.until("the dead one's lease has ended", || {
        scene.deployment.must(&["ledger", "rebuild", "--without", &log]).is_ok()
    });
    assert_eq!(scene.crowd.promised(), sold, "sold while a log was out of reach");
}

/// The operator's hand in a running sale: more units, and a ledger built anew.
pub(crate) fn restocked_and_rebuilt(scene: &Scene) {
    for round in 0..3 {
        let gateway = &scene.deployment.gateways()[round % 2];
        let path = format!("/admin/v1/sales/{SALE}/restock");
        let body = json!({"restock_id": format!("restock-{round}"), "units": 100}).to_string();
        scene.until("a restock is answered", || scene.operate(gateway, "POST", &path, &body).is_some());
        // Answered late is repeated: one life more.
        scene.until("a rebuild is answered", || scene.deployment.must(&["ledger", "rebuild"]).is_ok());
        scene.until_sold(50);
    }
}

pub(crate) fn everything_killed(scene: &Scene) {
    for instance in scene.deployment.instances() {
        instance.kill().unwrap();
    }
    scene.redis().kill().unwrap();
    scene.maria.kill().unwrap();
    let (keeper, _) = scene.zookeeper();
    keeper.kill().unwrap();
    thread::sleep(AWAY);
    scene.redis().restart().unwrap();
    scene.maria.restart().unwrap();
    keeper.restart().unwrap();
    for instance in scene.deployment.instances() {
        instance.spawn().unwrap();
    }
    for instance in scene.deployment.instances() {
        instance.wait_until_ready().unwrap();
    }
}

/// Nobody reaches the gateways, which have all they need to sell.
pub(crate) fn nginx_killed(scene: &Scene) {
    scene.nginx().kill().unwrap();
    scene.until_felt(FELT);
    thread::sleep(AWAY);
    scene.nginx().restart().unwrap();
}

/// A pass names one order: once that is cancelled, no gateway sells on it again, and its units are somebody else's.
pub(crate) fn pass_used_again_after_cancel(scene: &Scene) {
    let ports: Vec<u16> = scene.gateways().map(testbed::Instance::buyers_port).collect();
    for number in 0..10 {
        let user = format!("canceller-{number}");
        let ask = |port: u16, path: &str, pass: &str| {
            let headers =
                [("Floodgate-User", &*user), ("Floodgate-Pass", pass), ("Content-Type", "application/json")];
            Client::new(port, Duration::from_secs(5)).request("POST", path, &headers, "{}").unwrap()
        };
        let granted = ask(ports[0], &format!("/api/v1/sales/{SALE}/passes"), "");
        assert_eq!(granted.status, 201, "{granted:?}");
        let granted: serde_json::Value = serde_json::from_str(&granted.body).unwrap();
        let (pass, order) = (granted["pass"].as_str().unwrap(), granted["order_id"].as_str().unwrap());
        let press = format!("/api/v1/sales/{SALE}/orders");
        assert_eq!(ask(ports[0], &press, pass).status, 202);
        let cancel = format!("/api/v1/orders/{order}/cancel");
        // Refused while it is queued.
        scene.until("the order is cancelled", || ask(ports[1], &cancel, pass).status == 200);
        for &port in &ports {
            scene.until("the ledger has heard of it", || ask(port, &press, pass).body.contains("pass-used"));
        }
        scene.crowd.remember(&user, order);
    }
}

//! Two ledgers under one orders database: a configuration that names another server, and a partition that leaves a gateway on the
//! old primary. Nobody begins lives against the others, and the sale goes on.

use testbed::{AppendFsync, Instance, Proxy, Redis, RedisOptions};

use crate::scene::Scene;

const REDIS_URLS: &str = "FLOODGATE_STOCK__REDIS_URLS";

/// Redis urls as the environment takes them.
fn list(ports: impl IntoIterator<Item = u16>) -> String {
    let urls: Vec<_> = ports.into_iter().map(|port| format!("redis://127.0.0.1:{port}")).collect();
    format!("{urls:?}")
}

/// The gateway says that others see the recorded ledger and it does not.
fn is_elsewhere(gateway: &Instance) -> bool {
    gateway.readiness().contains("\"other-ledger\"")
}

/// No life begins while the sale goes on.
fn sells_in_one_life(scene: &Scene, stray: &Instance) {
    let before = scene.epoch();
    scene.until_sold(200);
    scene.until("it still is elsewhere", || is_elsewhere(stray));
    assert!(!stray.is_ready(), "a balancer must send nobody there: {}", stray.readiness());
    scene.until_sold(50);
    assert_eq!(scene.epoch(), before, "lives were begun against each other");
}

pub(crate) fn a_gateway_names_another_redis(scene: &Scene) {
    let other =
        Redis::start(RedisOptions { appendfsync: AppendFsync::Off, ..RedisOptions::default() }).unwrap();
    let stray = &scene.deployment.gateways()[1];
    stray.kill().unwrap();
    stray.set_environment(REDIS_URLS, &list([other.port()]));
    stray.spawn().unwrap();
    scene.until("it is told that it is elsewhere", || is_elsewhere(stray));
    sells_in_one_life(scene, stray);
    let told = stray.log().matches("the sales live in").count();
    assert!((1..=3).contains(&told), "one line a change, not one a look: {told}");

    // An honest restart is rebuilt by those that see it, and one new life is enough. The stray stands still until that has begun: on a busy
    // machine a restart may take so long that it would be right to take over.
    let before = scene.epoch();
    stray.freeze().unwrap();
    scene.redis().restart().unwrap();
    scene.until("a new life", || scene.epoch() > before);
    stray.thaw().unwrap();
    sells_in_one_life(scene, stray);
    assert!(scene.epoch() <= before + 2, "{} lives for one restart", scene.epoch() - before);

    // The configuration is mended.
    stray.kill().unwrap();
    stray.set_environment(REDIS_URLS, &list([scene.redis_proxy().port()]));
    stray.start().unwrap();
}

pub(crate) fn old_primary_cut_off_with_a_gateway(scene: &Scene) {
    let sentinel = scene.sentinel();
    let primary = sentinel.primary();
    let stray = &scene.deployment.gateways()[1];
    let ways: Vec<Proxy> =
        sentinel.sentinels().iter().map(|sentinel| Proxy::start(sentinel.port()).unwrap()).collect();
    stray.kill().unwrap();
    stray.set_environment(REDIS_URLS, &list(ways.iter().map(Proxy::port)));
    stray.start().unwrap();

    // For the Sentinels the primary is gone, and nothing that they tell it is heard. One gateway goes on seeing it, and no Sentinel.
    let deaf = ["-ping", "-replicaof", "-slaveof", "-publish"];
    primary.command(&[&["ACL", "SETUSER", "default"][..], &deaf[..]].concat()).unwrap();
    ways.iter().for_each(|way| way.cut().unwrap());
    sentinel.wait_for_other_primary(primary).unwrap();
    scene.until("the gateway on the old primary is refused", || is_elsewhere(stray));
    assert_eq!(primary.info("role").unwrap(), "master", "there are two");
    for _ in 0..3 {
        sells_in_one_life(scene, stray);
    }

    // The partition ends.
    primary.command(&["ACL", "SETUSER", "default", "+@all"]).unwrap();
    ways.iter().for_each(|way| way.heal().unwrap());
    stray.wait_until_ready().unwrap();
    // It must not be left with ways that end with this strike.
    stray.kill().unwrap();
    stray.set_environment(REDIS_URLS, &list(sentinel.sentinels().iter().map(Redis::port)));
    stray.start().unwrap();
}

//! Every server: starts, answers, is killed, comes back with its data, stands still and goes on. It asserts nothing about time.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use testbed::{AppendFsync, MariaDb, Nginx, Redis, RedisOptions, Sentinel, ZooKeeper, ZooKeeperEnsemble};

const SOON: Duration = Duration::from_secs(60);

/// The state letter of /proc/PID/stat; none if there is no such process.
fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.trim_start().chars().next()
}

#[test]
fn redis_keeps_what_it_was_told_to_keep() {
    let redis =
        Redis::start(RedisOptions { appendfsync: AppendFsync::Always, ..Default::default() }).unwrap();
    assert_eq!(redis.command(&["SET", "k", "v"]).unwrap(), "OK");
    let (port, pid, run) = (redis.port(), redis.pid(), redis.info("run_id").unwrap());

    redis.kill().unwrap();
    assert!(redis.command(&["PING"]).is_err());
    redis.restart().unwrap();
    assert_eq!((redis.port(), redis.command(&["GET", "k"]).unwrap().as_str()), (port, "v"));
    assert_ne!(redis.pid(), pid);
    assert_ne!(redis.info("run_id").unwrap(), run);

    redis.freeze().unwrap();
    assert_eq!(state(redis.pid()), Some('T'));
    redis.thaw().unwrap();
    assert_eq!(redis.command(&["GET", "k"]).unwrap(), "v");

    // Also while it stands still.
    redis.freeze().unwrap();
    redis.stop().unwrap();
    redis.restart().unwrap();
    assert_eq!(redis.command(&["GET", "k"]).unwrap(), "v");

    assert!(redis.command(&["NONSENSE"]).unwrap_err().to_string().contains("unknown command"));
    for round in 0..40 {
        redis.command(&["DEBUG", "SLEEP", "0"]).unwrap();
        redis.command(&["EVAL", "for i = 1, 1000000 do end", "0"]).unwrap();
        if redis.cpu() > Duration::from_millis(50) {
            return;
        }
        assert!(round < 39, "no processor time counted");
    }
}

#[test]
fn redis_without_a_file_forgets() {
    let redis = Redis::start(RedisOptions { appendfsync: AppendFsync::Off, ..Default::default() }).unwrap();
    redis.command(&["SET", "k", "v"]).unwrap();
    redis.restart().unwrap();
    assert_eq!(redis.command(&["GET", "k"]).unwrap(), "");
}

#[test]
fn redis_takes_configuration_and_says_what_is_wrong_with_it() {
    let line = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    let redis =
        Redis::start(RedisOptions { config: line("maxmemory", "20mb"), ..Default::default() }).unwrap();
    assert_eq!(redis.command(&["CONFIG", "GET", "maxmemory"]).unwrap(), "maxmemory\n20971520");
    let error =
        Redis::start(RedisOptions { config: line("nonsense", "1"), ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("Bad directive"), "{error}");
}

#[test]
fn sentinel_promotes_a_replica() {
    let sentinel = Sentinel::start(1).unwrap();
    assert_eq!(sentinel.sentinel_urls().len(), 3);
    // Whichever it is: on a machine that is short of time they may have replaced the first one already.
    let old = sentinel.current().expect("a primary");
    old.command(&["SET", "k", "v"]).unwrap();
    assert_eq!(old.command(&["WAIT", "1", "60000"]).unwrap(), "1");
    old.kill().unwrap();
    let new = sentinel.wait_for_other_primary(old).unwrap();
    assert_ne!(new.port(), old.port());
    assert_eq!(new.command(&["GET", "k"]).unwrap(), "v");
    // The old one comes back as a replica.
    old.restart().unwrap();
    old.wait_until("follows", 4 * SOON, || old.info("role").is_ok_and(|role| role == "slave")).unwrap();
}

#[test]
fn zookeeper_stands_alone() {
    let server = ZooKeeper::start().unwrap();
    assert_eq!(server.connect_string(), format!("127.0.0.1:{}", server.port()));
    assert!(server.command("srvr").unwrap().contains("Mode: standalone"));
    server.kill().unwrap();
    assert!(server.command("srvr").is_err());
    server.restart().unwrap();
    server.freeze().unwrap();
    assert_eq!(state(server.pid()), Some('T'));
    server.thaw().unwrap();
    server.stop().unwrap();
    server.restart().unwrap();
    assert!(server.command("srvr").unwrap().contains("Mode: standalone"));
}

#[test]
fn a_zookeeper_ensemble_elects_another_leader() {
    let ensemble = ZooKeeperEnsemble::start().unwrap();
    assert_eq!(ensemble.connect_string().split(',').count(), 3);
    let first = ensemble.leader().unwrap();
    first.kill().unwrap();
    let second = ensemble.leader().unwrap();
    assert_ne!(first.port(), second.port());
    first.restart().unwrap();
    assert!(first.command("srvr").unwrap().contains("Mode: follower"));
}

#[test]
fn mariadb_keeps_what_it_committed() {
    let server = MariaDb::start().unwrap();
    let url = server.url("shop").unwrap();
    assert_eq!(url, format!("mysql://floodgate:floodgate@127.0.0.1:{}/shop", server.port()));
    server.sql("shop", "CREATE TABLE t (k INT PRIMARY KEY) ENGINE=InnoDB; INSERT INTO t VALUES (7)").unwrap();
    assert_eq!(server.sql("", "SELECT @@innodb_flush_log_at_trx_commit").unwrap(), "1");
    server.kill().unwrap();
    assert!(server.sql("shop", "SELECT 1").is_err());
    server.restart().unwrap();
    assert_eq!(server.sql("shop", "SELECT k FROM t").unwrap(), "7");
    server.freeze().unwrap();
    assert_eq!(state(server.pid()), Some('T'));
    server.thaw().unwrap();
    server.stop().unwrap();
    server.restart().unwrap();
    assert_eq!(server.sql("shop", "SELECT k FROM t").unwrap(), "7");
    assert!(server.sql("shop", "SELECT nonsense").unwrap_err().to_string().contains("Unknown column"));

    // Nobody else's connections keep the test from looking.
    let full = MariaDb::start_with(&["--max-connections=10"]).unwrap();
    assert_eq!(full.sql("", "SELECT @@max_connections").unwrap(), "10");
}

#[test]
fn nginx_serves_with_lua() {
    let nginx = Nginx::start(|port| {
        format!("server {{ listen 127.0.0.1:{port}; location / {{ content_by_lua_block {{ ngx.say('worker ', ngx.worker.id()) }} }} }}")
    })
    .unwrap();
    let get = || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", nginx.port())).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get().contains("worker "), "{}", get());
    nginx.kill().unwrap();
    nginx.restart().unwrap();
    assert!(get().contains("worker "));
    nginx.freeze().unwrap();
    assert_eq!(state(nginx.pid()), Some('T'));
    nginx.thaw().unwrap();
    assert!(get().contains("worker "));
    nginx.stop().unwrap();
    nginx.restart().unwrap();
    assert!(get().contains("worker "));
    assert!(Nginx::start(|_| "nonsense;".to_owned()).unwrap_err().to_string().contains("unknown directive"));
}

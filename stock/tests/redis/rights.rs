//! What a login of the ledger must be allowed: exactly what the documentation says, and each lesser one is refused at once.

use stock::ledger::redis::{RedisAudit, RedisStartError, deploy_scripts};

use super::*;

const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");

/// The rules of the documented line.
fn documented() -> Vec<&'static str> {
    let begin = "ACL SETUSER floodgate on >PASSWORD ";
    let (_, rest) = DOCUMENTATION.split_once(begin).expect("the documentation has the line");
    rest.split_once('`').expect("it ends").0.split(' ').collect()
}

/// A server with one more login, and the address for it.
fn server_for(rules: &[&str]) -> (Redis, String) {
    let server = redis(AppendFsync::Everysec);
    allow(&server, rules);
    let url = format!("redis://floodgate:pw@127.0.0.1:{}", server.port());
    (server, url)
}

fn allow(server: &Redis, rules: &[&str]) {
    let command = [&["ACL", "SETUSER", "floodgate", "reset", "on", ">pw"], rules].concat();
    assert_eq!(server.command(&command).unwrap().trim(), "OK", "{rules:?}");
}

#[tokio::test]
async fn the_documented_login_may_do_everything_and_nothing_beside() {
    let (server, url) = server_for(&documented());
    assert_eq!(deploy_scripts(&config(&url)).await.unwrap().scripts.len(), 20);
    let ledger = connect(&url).await;
    let sale = Sale::open(&ledger, 10).await;
    assert_eq!(sale.take([1]).await, 1);
    assert_eq!(sale.take([2, 3]).await, 2);
    sale.ledger.confirm(sale.id(), &sale.settlements([1])).await.unwrap();
    sale.ledger.release(sale.id(), &sale.settlements([2])).await.unwrap();
    assert_eq!(sale.ledger.pending(sale.id(), None, None, 9).await.unwrap().len(), 1);
    assert_eq!(sale.state(1).await.unwrap(), IdState::Confirmed);
    sale.ledger.push_sale(&SaleVersion { version: 2, total: 11, ..sale.version.clone() }).await.unwrap();
    assert_eq!(sale.units().await, (9, 1, 1));
    ledger.renew_lease(OWNER, 5_000).await.unwrap();
    assert_eq!(ledger.leases().await.unwrap().1.len(), 1);
    ledger.end_lease(OWNER).await.unwrap();
    let audit = RedisAudit::connect(&config(&url)).await.unwrap();
    assert_eq!(audit.sale(sale.id()).await.unwrap().unwrap().conserved(), Some(true));
    audit.close().await;
    sale.ledger.forget(sale.id()).await.unwrap();
    assert_eq!(server.command(&["DBSIZE"]).unwrap().trim(), "0", "nothing is left of any trial");
    let client = redis::Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for forbidden in ["FLUSHALL", "KEYS *", "CONFIG GET maxmemory", "SET other 1", "SHUTDOWN"] {
        let mut words = forbidden.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        words.for_each(|word| _ = command.arg(word));
        let error = command.query_async::<redis::Value>(&mut connection).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{forbidden}: {error}");
    }
}

#[tokio::test]
async fn a_login_that_lacks_a_right_is_refused_at_once_with_the_line_to_type() {
    let rules = documented();
    let (server, url) = server_for(&rules);
    let keys = |keys: &[&'static str]| {
        let others = rules.iter().copied().filter(|rule| !rule.starts_with('~'));
        keys.iter().copied().chain(others).collect::<Vec<_>>()
    };
    let without = |rule: &'static str| [rules.clone(), vec![rule]].concat();
    let lesser = [
        keys(&["~{fg:*"]),
        keys(&["~{fg}:*"]),
        keys(&["~fg:*"]),
        keys(&[]),
        without("-zadd"),
        without("-zrem"),
        without("-hscan"),
        without("-hdel"),
        without("-ltrim"),
        without("-unlink"),
        without("-info"),
        without("-evalsha"),
        without("-time"),
        without("-script"),
    ];
    for rules in lesser {
        allow(&server, &rules);
        for error in [
            RedisLedger::connect_with(&config(&url), DEPLOYMENT, PATIENCE).await.unwrap_err(),
            deploy_scripts(&config(&url)).await.unwrap_err(),
        ] {
            let said = error.to_string();
            assert!(matches!(error, RedisStartError::Rights { .. }) && error.is_final(), "{rules:?}: {said}");
            for right in documented() {
                assert!(said.contains(right), "{right:?} is not in {said}");
            }
        }
    }
}

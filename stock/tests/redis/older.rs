//! A ledger beside the version before this one, which ties no sale to a deployment.

use super::*;

#[tokio::test]
async fn a_sale_that_an_older_version_installed_is_tied_by_its_next_opening() {
    let ours = connect_patiently(&SHARED.url()).await;
    let patience = Patience { response: Duration::from_secs(10), call: Duration::from_secs(20) };
    let config = config(&SHARED.url());
    let theirs = RedisLedger::connect_with(&config, DeploymentId(0xD2), patience).await.unwrap();
    let theirs = Ledger::Redis(theirs);
    let sale = Sale::open(&ours, 10).await;
    assert!(sale.snapshot().await.unwrap().tied);

    // As the older version leaves it.
    let books = format!("{{fg:{}}}:books", sale.id());
    assert_eq!(SHARED.command(&["HDEL", &books, "deployment"]).unwrap().trim(), "1");
    assert_eq!(sale.take([1, 2]).await, 2, "it sells on");
    assert_eq!(sale.take([3]).await, 1);
    assert!(!sale.snapshot().await.unwrap().tied);
    assert!(theirs.snapshot(sale.id()).await.is_ok(), "nobody can tell whose it is");
    assert_eq!(theirs.adopt(sale.id()).await, Ok(None));

    ours.open(sale.id(), 1).await.unwrap();
    assert!(sale.snapshot().await.unwrap().tied);
    assert_eq!(sale.units().await, (7, 3, 0), "and nothing else changed");
    assert!(matches!(theirs.snapshot(sale.id()).await, Err(LedgerError::Foreign { .. })));
}

//! A ledger beside what a build from before the first tagged version left in it: sales that name no deployment.

use super::*;

#[tokio::test]
async fn a_sale_that_names_no_deployment_is_refused_until_it_is_adopted() {
    let ours = connect_patiently(&SHARED.url()).await;
    let sale = Sale::open(&ours, 10).await;
    let books = format!("{{fg:{}}}:books", sale.id());
    assert_eq!(SHARED.command(&["HDEL", &books, "deployment"]).unwrap().trim(), "1");
    let refused = ours.snapshot(sale.id()).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Foreign { by, .. } if &**by == "none"), "{refused:?}");
    assert!(refused.to_string().contains("floodgate ledger adopt"), "{refused}");
    for answer in [ours.open(sale.id(), 1).await.err(), ours.forget(sale.id()).await.err()] {
        assert_eq!(answer.as_ref(), Some(&refused));
    }
    assert_eq!(ours.adopt(sale.id()).await, Ok(Some(1)));
    assert_eq!(ours.snapshot(sale.id()).await.unwrap_err(), LedgerError::Amnesia);
}

//! Fills the gateway's ports: orders and payments with the database, the operator's side with database, ledger and log.

use std::sync::{Arc, OnceLock};

use gateway::catalog::{Catalog, CatalogSale};
use gateway::ports::{
    Cancelled, Figures, Operator, OrderView, Orders, PaymentAnswer, PaymentProvider, PaymentRefusal,
    Payments, PortError, PortFuture, RebuildBegun, SaleChange, SaleView,
};
use order_worker::database::{By, CancelOutcome, OrderRow, Published, SaleRow};
use order_worker::life::payments::Provider;
use order_worker::life::payments::inbox::{NotReceived, PaymentInbox, Received};
use order_worker::life::payments::{Notice, Refusal};
use order_worker::membership::operator;
use order_worker::{AuditError, Author, Database, DatabaseError, RebuildError, ReconcileError, audit, bring};
use queue::Topic;
use stock::{EpochGate, Ledger, OrderId, Owner, SaleDefinition, SaleId, Stock, Timestamp, UserId};

/// What buyers' calls want of orders.
pub(crate) struct RootOrders(pub(crate) Database);

/// What the operator wants; it also keeps the catalog, which shows what the operator changes.
pub(crate) struct RootOperator {
    database: Database,
    stock: Arc<Stock>,
    orders: Topic,
    /// Says which life of the ledger purchases may name.
    epoch_gate: Arc<EpochGate>,
    /// The operator's token's holder: in this name the journal has what the operator changes.
    author: Author,
    /// The gateway's, which is made after this.
    catalog: OnceLock<Arc<Catalog>>,
}

impl RootOperator {
    /// Its sales are offered nowhere yet.
    pub(crate) fn new(
        database: Database,
        stock: Arc<Stock>,
        orders: Topic,
        epoch_gate: Arc<EpochGate>,
        author: Author,
    ) -> Self {
        Self { database, stock, orders, epoch_gate, author, catalog: OnceLock::new() }
    }

    /// From now on changes show in `catalog`.
    pub(crate) fn offer_through(&self, catalog: Arc<Catalog>) {
        self.catalog.get_or_init(|| catalog);
    }

    /// Reads all sales into the gateway's memory. Sales that are settled are left out: nobody can buy there any more, and
    /// their orders are found by id.
    pub(crate) async fn refresh_catalog(&self) -> Result<(), DatabaseError> {
        let epoch = self.epoch_gate.offered();
        let mut rows = self.database.unsettled_sales().await?;
        rows.sort_by_key(|row| (row.definition.starts_at, row.definition.id.clone()));
        let sales = rows
            .into_iter()
            .map(|row| CatalogSale {
                version: row.version,
                total: row.total,
                paused_by: row.paused_by,
                epoch,
                definition: row.definition,
            })
            .collect();
        if let Some(catalog) = self.catalog.get() {
            catalog.replace(sales);
        }
        Ok(())
    }

    /// Takes a changed sale to ledger and catalog before the operator hears that it is changed. A ledger out of reach
    /// leaves the row changed: the reconciler pushes it until both are equal.
    async fn changed(&self, row: SaleRow) -> Result<SaleView, PortError> {
        // A settled sale has left the ledger for good.
        if !row.settled {
            bring(&self.database, &self.stock, &row.definition.id).await.map_err(unreconciled)?;
        }
        self.refresh_catalog().await.map_err(refused)?;
        Ok(sale_view(row))
    }
}

impl Orders for RootOrders {
    fn order(&self, order_id: OrderId) -> PortFuture<'_, Option<OrderView>> {
        Box::pin(async move { Ok(self.0.order(order_id).await.map_err(refused)?.map(order_view)) })
    }

    fn cancel(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Cancelled> {
        Box::pin(async move { cancel(&self.0, order_id, By::User(&user)).await })
    }

    fn reachable(&self) -> PortFuture<'_, ()> {
        Box::pin(async move { self.0.epoch().await.map(|_| ()).map_err(refused) })
    }
}

/// What payment providers' calls want.
pub(crate) struct RootPayments(pub(crate) PaymentInbox);

fn provider_of(provider: PaymentProvider) -> Provider {
    match provider {
        PaymentProvider::StandardWebhooks => Provider::StandardWebhooks,
        PaymentProvider::WechatPay => Provider::WechatPay,
        PaymentProvider::Alipay => Provider::Alipay,
    }
}

impl Payments for RootPayments {
    fn takes(&self, provider: PaymentProvider) -> bool {
        self.0.receivers().takes(provider_of(provider))
    }

    fn call<'a>(
        &'a self,
        provider: PaymentProvider,
        headers: &'a [(&'a str, &'a [u8])],
        body: &'a [u8],
    ) -> PortFuture<'a, PaymentAnswer> {
        Box::pin(async move {
            match self.0.take(provider_of(provider), Notice { headers, body }).await {
                Ok(Received { order_id, is_mismatch: true }) => {
                    Ok(PaymentAnswer::AmountMismatch { order_id })
                }
                Ok(Received { order_id, is_mismatch: false }) => Ok(PaymentAnswer::Received { order_id }),
                Err(NotReceived::Refused(refusal)) => Ok(PaymentAnswer::Refused(refused_payment(&refusal))),
                Err(error @ NotReceived::Busy) => Err(PortError::Unavailable(error.to_string())),
                Err(NotReceived::Database(error)) => Err(refused(error)),
            }
        })
    }

    fn sign_callback(&self, id: &str, at: Timestamp, body: &[u8]) -> Option<[(&'static str, String); 3]> {
        self.0.receivers().sign_callback(id, at, body)
    }
}

fn refused_payment(refusal: &Refusal) -> PaymentRefusal {
    let why = refusal.to_string();
    match refusal {
        Refusal::Signature(_) | Refusal::Time => PaymentRefusal::Unsigned(why),
        Refusal::Malformed(_) => PaymentRefusal::Malformed(why),
        Refusal::NotOurs(_) => PaymentRefusal::NotOurs(why),
        Refusal::OurKey(_) => PaymentRefusal::OurFault(why),
    }
}

async fn cancel(database: &Database, order_id: OrderId, by: By<'_>) -> Result<Cancelled, PortError> {
    Ok(match database.cancel(order_id, by).await.map_err(refused)? {
        CancelOutcome::Cancelled(row) => Cancelled::Done(order_view(row)),
        CancelOutcome::WrongState(status) => Cancelled::WrongState(status),
        CancelOutcome::NotFound => Cancelled::NotFound,
    })
}

impl Operator for RootOperator {
    fn sales(&self) -> PortFuture<'_, Vec<SaleView>> {
        Box::pin(async move {
            let mut rows = self.database.sales().await.map_err(refused)?;
            rows.sort_by_key(|row| (row.definition.starts_at, row.definition.id.clone()));
            Ok(rows.into_iter().map(sale_view).collect())
        })
    }

    fn publish(&self, definition: SaleDefinition) -> PortFuture<'_, SaleView> {
        Box::pin(async move {
            definition.validate().map_err(|e| PortError::Invalid(e.to_string()))?;
            match self.database.publish(&definition, &self.author).await.map_err(refused)? {
                Published::Differs(difference) => return Err(PortError::Differs(difference)),
                Published::New | Published::Unchanged => {}
            }
            let row = self.database.sale(&definition.id).await.map_err(refused)?;
            self.changed(row.ok_or(PortError::UnknownSale(definition.id))?).await
        })
    }

    fn change(&self, sale: SaleId, change: SaleChange) -> PortFuture<'_, SaleView> {
        Box::pin(async move {
            let row = match change {
                SaleChange::Pause { by } => self.database.pause(&sale, &by, &self.author).await,
                SaleChange::Resume => self.database.resume(&sale, &self.author).await,
                SaleChange::Restock { restock_id, units } => {
                    self.database.restock(&sale, &restock_id, units, &self.author).await
                }
            };
            self.changed(row.map_err(refused)?).await
        })
    }

    fn figures(&self, sale: SaleId) -> PortFuture<'_, Option<Figures>> {
        Box::pin(async move {
            let Some(row) = self.database.sale(&sale).await.map_err(refused)? else { return Ok(None) };
            let audit = audit(&self.database, Some(&self.stock), Some(&self.orders), Some(&sale)).await;
            let audit = audit.map_err(|e| match e {
                AuditError::Database(e) => refused(e),
                e => PortError::Unavailable(e.to_string()),
            })?;
            let backlog = audit.backlog.unwrap_or(0);
            let Some(books) = audit.sales.into_iter().next() else { return Ok(None) };
            let ledger = books.ledger.as_ref();
            // All of them of the audit's moment: a row read before it would not fit to `at_rest`.
            let total = books.total.unwrap_or(row.total);
            Ok(Some(Figures {
                total: u64::from(total),
                // A settled sale has left the ledger: what the database did not sell is what remained.
                remaining: ledger
                    .map_or_else(|| i64::from(total) - books.sold as i64, |ledger| ledger.remaining),
                pending: ledger.map_or(0, |ledger| ledger.pending),
                confirmed: ledger.map_or(books.sold, |ledger| ledger.confirmed),
                sold: books.sold,
                backlog,
                at_rest: backlog == 0 && books.at_rest.unwrap_or(row.settled),
                epoch: ledger.map_or_else(|| self.epoch_gate.offered(), |ledger| ledger.epoch),
                paused_by: row.paused_by,
                sold_out: self.stock.flag().cell(&sale).read().map(|flag| flag.sold_out),
                broken: books.broken,
            }))
        })
    }

    fn cancel(&self, order_id: OrderId) -> PortFuture<'_, Cancelled> {
        Box::pin(async move { cancel(&self.database, order_id, By::Operator(&self.author)).await })
    }

    fn rebuild(&self, without: Option<Owner>) -> PortFuture<'_, RebuildBegun> {
        Box::pin(async move {
            if matches!(self.stock.ledger(), Ledger::Embedded(_)) {
                return Err(PortError::Invalid(
                    "the embedded ledger lives in the process and is rebuilt at each start: restart it"
                        .into(),
                ));
            }
            let mut begun = RebuildBegun { epoch: 0, orders_at_risk: None, units_at_risk: None };
            match without {
                None => _ = operator::begin_rebuild(&self.database, &self.author).await.map_err(not_begun)?,
                Some(owner) => {
                    let (database, stock) = (&self.database, Some(&*self.stock));
                    let at_risk = operator::forget_instance(database, stock, owner, &self.author);
                    let at_risk = at_risk.await.map_err(not_begun)?;
                    (begun.orders_at_risk, begun.units_at_risk) = (at_risk.orders, at_risk.units);
                }
            }
            begun.epoch = self.database.epoch().await.map_err(refused)?;
            Ok(begun)
        })
    }
}

fn not_begun(error: RebuildError) -> PortError {
    match error {
        RebuildError::Database(error) => refused(error),
        error if error.is_retryable() => PortError::Unavailable(error.to_string()),
        error => PortError::Invalid(error.to_string()),
    }
}

fn refused(error: DatabaseError) -> PortError {
    match error {
        DatabaseError::UnknownSale(sale) => PortError::UnknownSale(sale),
        error @ (DatabaseError::RestockDiffers { .. }
        | DatabaseError::Invalid(_)
        | DatabaseError::Record(_)) => PortError::Invalid(error.to_string()),
        error @ (DatabaseError::Unavailable(_) | DatabaseError::Schema(_) | DatabaseError::Broken(_)) => {
            PortError::Unavailable(error.to_string())
        }
    }
}

fn unreconciled(error: ReconcileError) -> PortError {
    match error {
        ReconcileError::Database(error) => refused(error),
        ReconcileError::Ledger(error) => PortError::Unavailable(error.to_string()),
    }
}

fn sale_view(row: SaleRow) -> SaleView {
    SaleView {
        total_now: row.total,
        sold: u64::from(row.sold),
        paused_by: row.paused_by,
        version: row.version,
        definition: row.definition,
    }
}

fn order_view(row: OrderRow) -> OrderView {
    OrderView {
        order_id: row.order_id,
        sale: row.sale_id,
        user: row.user_id,
        quantity: row.quantity,
        amount: row.amount,
        currency: row.currency,
        status: row.status,
        pay_by: row.pay_by,
    }
}

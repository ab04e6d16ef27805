//! Fills the gateway's ports: orders and payments with the database, the operator's side with database, ledger and log.

use std::sync::{Arc, OnceLock};

use gateway::catalog::{Catalog, CatalogSale};
use gateway::ports::{
    Cancelled, Figures, Operator, OrderChange, OrderChanged, OrderView, Orders, PaymentAnswer,
    PaymentProvider, PaymentRefusal, Payments, PortError, PortFuture, RebuildBegun, RefundPart, RefundView,
    Refunded, SaleChange, SaleView, Standing,
};
use order_worker::database::{
    By, CancelOutcome, OrderRow, Part, Published, RefundAsked, RefundBy, RefundRow, SaleRow,
};
use order_worker::life::payments::Provider;
use order_worker::life::payments::inbox::{NotReceived, PaymentInbox, Received};
use order_worker::life::payments::{Notice, Refusal};
use order_worker::membership::operator;
use order_worker::{AuditError, Author, Database, DatabaseError, RebuildError, ReconcileError, audit, bring};
use queue::Topic;
use stock::{
    EpochGate, Ledger, LedgerError, OrderId, Owner, SaleDefinition, SaleId, Stock, Timestamp, UserId,
};

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
                terms_version: row.terms_version,
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

    /// The same after an edit: it is made, whatever the ledger says, and in force once that has answered.
    async fn edited(&self, row: SaleRow) -> Result<SaleView, PortError> {
        let brought = match row.settled {
            // Ends later now, perhaps: then it is lifted, rebuilt and in force by what looks after sales anyway.
            true => Err(LedgerError::UnknownSale(row.definition.id.clone()).into()),
            false => bring(&self.database, &self.stock, &row.definition.id).await,
        };
        let standing = match brought {
            Ok(()) => Standing::InForce,
            Err(error @ ReconcileError::Database(_)) => return Err(unreconciled(error)),
            Err(ReconcileError::Ledger(error)) => {
                tracing::warn!(sale = %row.definition.id, version = row.version, %error, "an edited sale is pushed to the ledger later");
                Standing::Pending
            }
        };
        self.refresh_catalog().await.map_err(refused)?;
        Ok(SaleView { standing: Some(standing), ..sale_view(row) })
    }
}

impl Orders for RootOrders {
    fn order(&self, order_id: OrderId) -> PortFuture<'_, Option<OrderView>> {
        Box::pin(async move { Ok(self.0.order(order_id).await.map_err(refused)?.map(order_view)) })
    }

    fn offered(&self, sale: SaleId, version: u64) -> PortFuture<'_, Option<SaleDefinition>> {
        Box::pin(async move {
            let row = self.0.sale_version(&sale, version).await.map_err(refused)?;
            Ok(row.map(|row| row.definition))
        })
    }

    fn orders_of(&self, sale: SaleId, user: UserId, limit: usize) -> PortFuture<'_, Vec<OrderView>> {
        Box::pin(async move {
            let rows = self.0.orders_of_user(&sale, &user, limit).await.map_err(refused)?;
            Ok(rows.into_iter().map(order_view).collect())
        })
    }

    fn cancel(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Cancelled> {
        Box::pin(async move {
            let cancelled = self.0.cancel(order_id, By::User(&user)).await;
            Ok(cancel_answer(cancelled.map_err(refused)?))
        })
    }

    fn refund(&self, order_id: OrderId, user: UserId) -> PortFuture<'_, Refunded> {
        Box::pin(async move { refund(&self.0, order_id, RefundBy::User(&user), None).await })
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

fn cancel_answer(outcome: CancelOutcome) -> Cancelled {
    match outcome {
        CancelOutcome::Cancelled(row) => Cancelled::Done(order_view(row)),
        CancelOutcome::WrongState(status) => Cancelled::WrongState(status),
        CancelOutcome::NotFound => Cancelled::NotFound,
    }
}

fn because(author: &Author, reason: Option<String>) -> Author {
    match reason {
        Some(reason) => author.clone().because(&reason),
        None => author.clone(),
    }
}

async fn refund(
    database: &Database,
    order_id: OrderId,
    by: RefundBy<'_>,
    part: Option<&Part>,
) -> Result<Refunded, PortError> {
    let refund = match database.refund(order_id, by, part).await.map_err(refused)? {
        RefundAsked::Written(refund) => refund_view(refund),
        RefundAsked::WrongState(status) => return Ok(Refunded::WrongState(status)),
        RefundAsked::NotOffered => return Ok(Refunded::NotOffered),
        RefundAsked::TooMuch(left) => return Ok(Refunded::TooMuch(left)),
        RefundAsked::NotFound => return Ok(Refunded::NotFound),
    };
    // Rows of orders never go.
    let order = database.order(order_id).await.map_err(refused)?;
    Ok(match order {
        Some(order) => Refunded::Asked { order: Box::new(order_view(order)), refund: Box::new(refund) },
        None => Refunded::NotFound,
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
                SaleChange::Edit { edit, reason } => {
                    let author = match reason {
                        Some(reason) => self.author.clone().because(&reason),
                        None => self.author.clone(),
                    };
                    let row = self.database.edit_sale(&sale, &edit, &author).await.map_err(refused)?;
                    return self.edited(row).await;
                }
                SaleChange::Resume => self.database.resume(&sale, &self.author).await,
                SaleChange::Restock { restock_id, units } => {
                    self.database.restock(&sale, &restock_id, units, &self.author).await
                }
                SaleChange::Withdraw { orders, reason } => {
                    self.database.withdraw(&sale, orders, &because(&self.author, reason)).await
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

    fn change_order(
        &self,
        order_id: OrderId,
        change: OrderChange,
        reason: Option<String>,
    ) -> PortFuture<'_, OrderChanged> {
        Box::pin(async move {
            let (database, author) = (&self.database, because(&self.author, reason));
            Ok(match change {
                OrderChange::Cancel => {
                    let cancelled = database.cancel(order_id, By::Operator(&author)).await;
                    OrderChanged::Cancelled(cancel_answer(cancelled.map_err(refused)?))
                }
                OrderChange::Close => {
                    let closed = database.close_order(order_id, &author).await;
                    OrderChanged::Cancelled(cancel_answer(closed.map_err(refused)?))
                }
                OrderChange::Refund(part) => {
                    let part = part.map(|RefundPart { request_id, amount }| Part { request_id, amount });
                    let by = RefundBy::Operator(&author);
                    OrderChanged::Refunded(refund(database, order_id, by, part.as_ref()).await?)
                }
            })
        })
    }

    fn retry_refund(&self, refund_id: String, reason: Option<String>) -> PortFuture<'_, Option<RefundView>> {
        Box::pin(async move {
            let author = because(&self.author, reason);
            let row = self.database.retry_refund(&refund_id, &author).await.map_err(refused)?;
            Ok(row.map(refund_view))
        })
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
        withdrawn_at: row.withdrawn_at,
        version: row.version,
        terms_version: row.terms_version,
        standing: None,
        definition: row.definition,
    }
}

fn refund_view(row: RefundRow) -> RefundView {
    RefundView {
        refund_id: row.refund_id,
        provider: row.provider,
        payment_id: row.payment_id,
        order_id: row.order_id,
        amount: row.amount,
        whole: row.whole,
        state: row.state.as_str(),
        reason: row.reason,
        requested_by: row.requested_by,
        attempts: row.attempts,
        last_error: row.last_error,
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

//! Promised orders become rows of `floodgate_orders`.
//!
//! One round trip a batch where nothing is in the way ([`quick`]). Else two more: lock and read; write and commit. And two more when some of the orders
//! have rows already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use stock::{OrderId, OrderStatus, Reservation, SaleId, Timestamp, UserId};

use super::fault::Fault;
use super::quick::{self, Known};
use super::session::{NOW, Session, in_parts, now};
use super::sql::{Answers, Text, TextOrNull, get, ids, list, parsed, parsed_option};
use super::transitions::apply;
use super::{MysqlDatabase, sales};
use crate::database::intake::NO_CURRENCY;
use crate::database::life::RowStatus;
use crate::database::sales::{Terms, older_terms};
use crate::database::transitions::{self, Transition};
use crate::database::{CloseCause, DatabaseError, OrderRow, Outcome, RejectReason, SaleRow, Settled};

impl MysqlDatabase {
    pub(in crate::database) async fn settle(
        &self,
        batch: Arc<[Reservation]>,
    ) -> Result<Vec<Settled>, DatabaseError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.known.clone();
        let settled = self.write(async move |session| settle(session, &batch, &known).await).await?;
        if settled.iter().any(Settled::is_released) {
            self.release_written.notify_one();
        }
        Ok(settled)
    }

    pub(in crate::database) async fn reject(
        &self,
        reservation: Reservation,
        reason: RejectReason,
    ) -> Result<Settled, DatabaseError> {
        let bare = [Reservation { metadata: None, ..reservation }];
        let mut settled =
            self.write(async move |session| look_first(session, &bare, Some(reason)).await).await?;
        self.release_written.notify_one();
        settled.pop().ok_or_else(|| DatabaseError::Broken("a rejected order has no answer".into()))
    }
}

/// The part of an order's row that no verdict changes, as literals: written before the sale is locked, for whoever waits for it.
struct Draft {
    /// `order_id, sale_id, user_id, quantity`.
    identity: String,
    metadata: String,
}

impl Draft {
    fn new(reservation: &Reservation) -> Self {
        let Reservation { order_id, sale, user, quantity, metadata, .. } = reservation;
        Self {
            identity: format!("'{order_id}',{},{},{quantity}", Text(sale.as_str()), Text(user.as_str())),
            metadata: TextOrNull(metadata.as_deref()).to_string(),
        }
    }
}

/// A sale's row as it was when it was locked, and what follows from it.
struct OpenSale {
    row: SaleRow,
    terms: Terms,
    /// Of versions that are older than the row's terms, and of which there are orders in the batch.
    older: BTreeMap<u64, Terms>,
    /// Units that the batch's users hold.
    held: HashMap<String, u64>,
}

impl OpenSale {
    /// Those under which this was promised.
    fn terms(&self, of: &Reservation) -> &Terms {
        let older = older_terms(&self.row, of.sale_version).and_then(|version| self.older.get(&version));
        older.unwrap_or(&self.terms)
    }
}

/// All that a batch is judged by, read behind the locks of its sales' rows.
struct Found {
    now: Timestamp,
    sales: BTreeMap<SaleId, OpenSale>,
}

/// What is about to be written, and the answer if it is.
#[derive(Default)]
struct Plan<'b> {
    settled: Vec<Settled>,
    orders: String,
    releases: String,
    /// Where it changes.
    sold: BTreeMap<&'b SaleId, u32>,
    /// What fits a sale that is withdrawn with its orders: closed behind all that.
    withdrawn: Vec<Transition>,
    /// A sale that has no row, though an order of it has none either.
    unknown: Option<&'b SaleId>,
    /// Units that users get by this batch.
    taken: HashMap<(&'b SaleId, &'b UserId), u64>,
}

async fn settle(session: &mut Session, batch: &[Reservation], known: &Known) -> Result<Vec<Settled>, Fault> {
    known.learn(session, batch).await?;
    if let Some(statements) = quick::statements(batch, known) {
        match session.at_once(statements).await {
            Ok(answers) => return quick::settled(batch, answers),
            Err(fault) if fault.is_of_the_data() => {
                // If it was for the terms, they are another sale's by now.
                known.forget(batch);
                // Never the fault itself: what the packet failed by says nothing of the orders.
                session.roll_back().await?;
            }
            Err(fault) => return Err(fault),
        }
    }
    look_first(session, batch, None).await
}

async fn look_first(
    session: &mut Session,
    batch: &[Reservation],
    reject: Option<RejectReason>,
) -> Result<Vec<Settled>, Fault> {
    // 1. Lock the sales, in the order of their ids, so that two batches wait for each other one way only; then read.
    let drafts: Vec<Draft> = batch.iter().map(Draft::new).collect();
    let mut users: BTreeMap<&SaleId, BTreeSet<&str>> = BTreeMap::new();
    for reservation in batch {
        users.entry(&reservation.sale).or_default().insert(reservation.user.as_str());
    }
    let mut found = Found::read(&users, session.transact(&lock_and_read(&users)).await?)?;
    found.learn_older(session, batch).await?;

    // 2. Judge and write as if no order had a row. If that is so, nothing else is asked. A crash before COMMIT leaves nothing, one
    // after it everything, and the repetition finds its rows.
    let plan = Plan::of(batch, &drafts, &found, &HashMap::new(), reject);
    if plan.unknown.is_none() {
        match session.commit(plan.statements(found.now)?).await {
            Ok(()) => return Ok(plan.settled),
            Err(Fault::Duplicate(_)) => {}
            Err(fault) => return Err(fault),
        }
    }

    // 3. Some have rows. The locks are still ours: what was found still holds. Only an order that names two sales can come in
    // between; then the key says so once more, and all begins anew.
    let rows = existing(session, batch).await?;
    let plan = Plan::of(batch, &drafts, &found, &rows, reject);
    if let Some(sale) = plan.unknown {
        return Err(DatabaseError::UnknownSale(sale.clone()).into());
    }
    if plan.orders.is_empty() {
        session.commit_found().await?;
    } else {
        session.commit(plan.statements(found.now)?).await?;
    }
    Ok(plan.settled)
}

fn lock_and_read(users: &BTreeMap<&SaleId, BTreeSet<&str>>) -> String {
    let mut statements: String = users.keys().map(|sale| sales::lock(sale)).collect();
    statements.push_str(NOW);
    for (sale, users) in users {
        let users: Vec<_> = users.iter().collect();
        statements += &in_parts(&users, |users| {
            format!(
                "SELECT sale_id, user_id, units_held FROM floodgate_orders FORCE INDEX (floodgate_orders_user)
                 WHERE sale_id = {} AND user_id IN ({}) AND units_held > 0;",
                Text(sale.as_str()),
                list(users)
            )
        });
    }
    statements
}

impl Found {
    fn read(users: &BTreeMap<&SaleId, BTreeSet<&str>>, mut answers: Answers) -> Result<Self, Fault> {
        let mut rows = Vec::with_capacity(users.len());
        for _ in users {
            rows.extend(answers.row().map(sales::sale_row).transpose()?);
        }
        let now = now(&mut answers)?;
        let mut found = Self { now, sales: BTreeMap::new() };
        for row in rows {
            let (id, terms) = (row.definition.id.clone(), Terms::of(&row.definition));
            found.sales.insert(id, OpenSale { row, terms, older: BTreeMap::new(), held: HashMap::new() });
        }
        for mut row in answers.rest() {
            let (sale, user): (SaleId, String) = (parsed(&mut row, 0)?, get(&mut row, 1)?);
            if let Some(sale) = found.sales.get_mut(&sale) {
                *sale.held.entry(user).or_default() += get::<u64>(&mut row, 2)?;
            }
        }
        Ok(found)
    }

    /// Asks for the terms of what was promised before a sale was edited. Hardly ever is there any: then nothing is asked.
    async fn learn_older(&mut self, session: &mut Session, batch: &[Reservation]) -> Result<(), Fault> {
        let mut wanted: BTreeSet<(&SaleId, u64)> = BTreeSet::new();
        for reservation in batch {
            let sale = self.sales.get(&reservation.sale);
            let version = sale.and_then(|sale| older_terms(&sale.row, reservation.sale_version));
            wanted.extend(version.map(|version| (&reservation.sale, version)));
        }
        for (id, version) in wanted {
            let answer = session.transact(&sales::select_version(id, version)).await?.row();
            let terms = answer.map(sales::version_terms).transpose()?;
            if let (Some(sale), Some((version, terms))) = (self.sales.get_mut(id), terms) {
                sale.older.insert(version, terms);
            }
        }
        Ok(())
    }
}

impl<'b> Plan<'b> {
    /// First fit in the order given, up to the first order of an unknown sale. `rows` are the orders that have rows.
    fn of(
        batch: &'b [Reservation],
        drafts: &[Draft],
        found: &Found,
        rows: &HashMap<OrderId, Settled>,
        reject: Option<RejectReason>,
    ) -> Self {
        let mut plan = Self { settled: Vec::with_capacity(batch.len()), ..Self::default() };
        let mut seen: HashMap<OrderId, usize> = HashMap::with_capacity(batch.len());
        for (reservation, draft) in batch.iter().zip(drafts) {
            let earlier = seen.get(&reservation.order_id).map(|&index| &plan.settled[index]);
            if let Some(row) = rows.get(&reservation.order_id).or(earlier) {
                plan.settled.push(Settled { outcome: Outcome::Duplicate, ..row.clone() });
                continue;
            }
            seen.insert(reservation.order_id, plan.settled.len());
            let sale = found.sales.get(&reservation.sale);
            let verdict = match (reject, sale) {
                (Some(reason), _) => Err(reason),
                (None, Some(sale)) => plan.judge(reservation, sale),
                (None, None) => {
                    plan.unknown = Some(&reservation.sale);
                    return plan;
                }
            };
            plan.write(reservation, draft, sale, verdict, found.now);
        }
        plan
    }

    /// Whether it fits what is left behind those before it; then it takes its part.
    fn judge(&mut self, reservation: &'b Reservation, sale: &OpenSale) -> Result<(), RejectReason> {
        let sold = self.sold.get(&reservation.sale).copied().unwrap_or(sale.row.sold);
        if reservation.quantity > sale.row.total.saturating_sub(sold) {
            return Err(RejectReason::NotEnough);
        }
        let held = sale.held.get(reservation.user.as_str()).copied().unwrap_or(0);
        let taken = self.taken.entry((&reservation.sale, &reservation.user)).or_default();
        let would_take = *taken + u64::from(reservation.quantity);
        if held + would_take > u64::from(sale.terms(reservation).per_user_limit) {
            return Err(RejectReason::LimitReached);
        }
        *taken = would_take;
        self.sold.insert(&reservation.sale, sold + reservation.quantity);
        Ok(())
    }

    /// Adds the row, with its release if it is rejected, and the answer.
    fn write(
        &mut self,
        reservation: &Reservation,
        draft: &Draft,
        sale: Option<&OpenSale>,
        verdict: Result<(), RejectReason>,
        now: Timestamp,
    ) {
        let (status, units_held) = match verdict {
            Ok(()) => (OrderStatus::Unpaid, reservation.quantity),
            Err(_) => (OrderStatus::Rejected, 0),
        };
        let terms = sale.map(|sale| sale.terms(reservation));
        let amount = terms
            .filter(|_| verdict != Err(RejectReason::Unwritable))
            .and_then(|terms| terms.amount(reservation.quantity));
        let Draft { identity, metadata } = draft;
        let pay_by = terms.filter(|_| verdict.is_ok()).map(|terms| terms.pay_by(now));
        // Writing into a String does not fail.
        let _ = write!(
            self.orders,
            "{}({identity},{units_held},{},{},'{status}',{},{metadata},'{now}','{now}',{},1,{},{})",
            if self.orders.is_empty() { "" } else { "," },
            amount.unwrap_or(0),
            Text(terms.map_or(NO_CURRENCY, |terms| &terms.currency)),
            TextOrNull(verdict.err().map(RejectReason::as_str)),
            TextOrNull(pay_by.map(|at| at.to_string()).as_deref()),
            u8::from(sale.is_some_and(|sale| sale.row.definition.rehearsal)),
            reservation.sale_version.map_or_else(|| "NULL".to_owned(), |version| version.to_string()),
        );
        if verdict.is_err() {
            let comma = if self.releases.is_empty() { "" } else { "," };
            let _ = write!(self.releases, "{comma}({identity},'{now}')");
        }
        let settled = Settled {
            order_id: reservation.order_id,
            sale: reservation.sale.clone(),
            user: reservation.user.clone(),
            quantity: reservation.quantity,
            units_held,
            status,
            pay_by,
            outcome: verdict.map_or_else(Outcome::Rejected, |()| Outcome::Inserted),
        };
        let withdrawn = sale.zip(terms).zip(pay_by).filter(|((sale, _), _)| sale.row.withdrawn_at.is_some());
        let step = withdrawn.map(|((sale, terms), pay_by)| {
            let amount = amount.and_then(|amount| u64::try_from(amount).ok()).unwrap_or(0);
            let row = unpaid(reservation, &sale.row, (amount, &terms.currency), pay_by, now);
            transitions::close(&row, now, CloseCause::Withdrawn, sale.row.settled)
        });
        match step {
            Some(Ok(step)) => {
                self.withdrawn.push(step);
                self.settled.push(settled.withdrawn());
            }
            _ => self.settled.push(settled),
        }
    }

    /// All that is to be written, `sold` last: the sale's row is locked already.
    fn statements(&self, now: Timestamp) -> Result<String, DatabaseError> {
        let mut statements = format!(
            "INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency, status, reason,
                                           metadata, created_at, updated_at, pay_by, version, rehearsal, sale_version)
             VALUES {};",
            self.orders
        );
        if !self.releases.is_empty() {
            statements += &release(&self.releases);
        }
        for (sale, sold) in &self.sold {
            statements += &sales::update(sale, &now.to_string(), &format!("sold = {sold}"));
        }
        Ok(statements + &apply(&self.withdrawn)?)
    }
}

/// The row of an order that fits, as it is written.
fn unpaid(
    reservation: &Reservation,
    sale: &SaleRow,
    (amount, currency): (u64, &str),
    pay_by: Timestamp,
    now: Timestamp,
) -> OrderRow {
    OrderRow {
        order_id: reservation.order_id,
        sale_id: reservation.sale.clone(),
        user_id: reservation.user.clone(),
        quantity: reservation.quantity,
        units_held: reservation.quantity,
        amount,
        currency: currency.to_owned(),
        status: OrderStatus::Unpaid,
        reason: None,
        metadata: reservation.metadata.clone(),
        created_at: now,
        updated_at: now,
        pay_by: Some(pay_by),
        version: 1,
        sale_version: reservation.sale_version,
        rehearsal: sale.definition.rehearsal,
        paid_at: None,
        refunded_amount: 0,
    }
}

/// What the rows of those orders of the batch say that have one.
async fn existing(session: &mut Session, batch: &[Reservation]) -> Result<HashMap<OrderId, Settled>, Fault> {
    let statements = in_parts(batch, |part| {
        format!(
            "SELECT order_id, sale_id, user_id, quantity, units_held, status, pay_by FROM floodgate_orders
             WHERE order_id IN ({});",
            ids(part.iter().map(|reservation| &reservation.order_id))
        )
    });
    let rows = session.transact(&statements).await?.rest();
    let settled = rows.map(|mut row| {
        let order_id = parsed(&mut row, 0)?;
        let settled = Settled {
            order_id,
            sale: parsed(&mut row, 1)?,
            user: parsed(&mut row, 2)?,
            quantity: get(&mut row, 3)?,
            units_held: get(&mut row, 4)?,
            status: parsed::<RowStatus>(&mut row, 5)?.0,
            pay_by: parsed_option(&mut row, 6)?,
            outcome: Outcome::Duplicate,
        };
        Ok((order_id, settled))
    });
    settled.collect()
}

/// Outbox rows of orders that hold no units any more. An order enters such a state once.
pub(super) fn release(rows: &str) -> String {
    format!(
        "INSERT INTO floodgate_releases (order_id, sale_id, user_id, quantity, created_at) VALUES {rows};"
    )
}

//! A batch in one packet, once the terms of its sales are known: written as if no order had a row and every one fitted, and the
//! server made to look whether that is so. Where it is not, a statement of the packet fails, COMMIT is never reached, and the batch goes
//! the way that looks first. So nothing here may decide what becomes of an order.
//!
//! The rows come last, though writers of one sale wait for each other so much longer: users are counted in half the time while their
//! rows are not there yet, since InnoDB would have to look every one of them up to know whose it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use mysql_async::Row;
use parking_lot::Mutex;
use stock::{OrderStatus, Reservation, SaleDefinition, SaleId, Timestamp};

use super::fault::Fault;
use super::sales;
use super::session::{Session, in_parts};
use super::sql::{Answers, Text, get, list, parsed};
use crate::database::sales::Terms;
use crate::database::{Outcome, Settled};

/// Terms that are remembered; beyond it they are all learned anew.
const KNOWN_MAX: usize = 1_024;

/// A larger packet might not be taken; the other way says so in a manner that halves the batch.
const STATEMENTS_MAX_BYTES: usize = 1 << 20;

/// Added to anything above nothing it is out of range, which no `sql_mode` forgives: how a statement is made to fail.
const TRAP: u64 = u64::MAX;

/// The time of the transaction, which stands in every row of it.
const NOW_TEXT: &str = "CONCAT(LEFT(DATE_FORMAT(NOW(3), '%Y-%m-%dT%H:%i:%s.%f'), 23), 'Z')";

/// What a sale was published with, and keeps until it is edited.
#[derive(Clone)]
struct KnownSale {
    terms: Terms,
    /// Since when they are its terms: an edit changes it.
    terms_version: u64,
    rehearsal: bool,
    /// Tells its row from another one under the same name.
    created_at: String,
}

/// The sales that batches have met.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<SaleId, KnownSale>>);

impl Known {
    /// Asks for what is not known yet of a batch's sales.
    pub(super) async fn learn(&self, session: &mut Session, batch: &[Reservation]) -> Result<(), Fault> {
        let unknown: BTreeSet<&str> = {
            let known = self.0.lock();
            let sales = batch.iter().map(|reservation| &reservation.sale);
            sales.filter(|sale| !known.contains_key(*sale)).map(SaleId::as_str).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        let ask = format!(
            "SELECT definition, created_at, terms_version FROM floodgate_sales WHERE sale_id IN ({});",
            list(unknown)
        );
        for mut row in session.ask(&ask).await?.rest() {
            let definition: SaleDefinition =
                serde_json::from_str(&get::<String>(&mut row, 0)?).map_err(sales::broken)?;
            let sale = KnownSale {
                terms: Terms::of(&definition),
                terms_version: get(&mut row, 2)?,
                rehearsal: definition.rehearsal,
                created_at: get(&mut row, 1)?,
            };
            let mut known = self.0.lock();
            if known.len() >= KNOWN_MAX {
                known.clear();
            }
            known.insert(definition.id, sale);
        }
        Ok(())
    }

    pub(super) fn forget(&self, batch: &[Reservation]) {
        let mut known = self.0.lock();
        for reservation in batch {
            known.remove(&reservation.sale);
        }
    }

    fn sale(&self, sale: &SaleId) -> Option<KnownSale> {
        self.0.lock().get(sale).cloned()
    }
}

/// Of a batch, the orders of one sale.
struct Part<'b> {
    sale: KnownSale,
    /// `[order, user, quantity, metadata, sale's version]` of each.
    rows: Vec<u8>,
    /// Each order's, with its units.
    users: Vec<(&'b str, u64)>,
    units: u64,
    has_metadata: bool,
}

/// The whole transaction but its begin and end; none if it is known to be of no use. Ends in failure unless it has written what
/// [`settled`] says.
pub(super) fn statements(batch: &[Reservation], known: &Known) -> Option<String> {
    let mut parts: BTreeMap<&SaleId, Part<'_>> = BTreeMap::new();
    for reservation in batch {
        let part = match parts.get_mut(&reservation.sale) {
            Some(part) => part,
            None => {
                let part = Part::new(known.sale(&reservation.sale)?, batch.len());
                parts.entry(&reservation.sale).or_insert(part)
            }
        };
        part.add(reservation)?;
    }
    let mut statements = String::with_capacity(batch.len() * 100 + 1_024);
    // Locks in the order of their ids, so that two batches wait for each other one way only.
    for (sale, part) in &parts {
        part.take_stock(sale, &mut statements);
    }
    for (sale, part) in &mut parts {
        part.count_held(sale, &mut statements)?;
    }
    for (sale, part) in &parts {
        part.insert(sale, &mut statements);
    }
    (statements.len() <= STATEMENTS_MAX_BYTES).then_some(statements)
}

/// The answers of a batch whose [`statements`] were carried out.
pub(super) fn settled(batch: &[Reservation], answers: Answers) -> Result<Vec<Settled>, Fault> {
    let sales: BTreeSet<&SaleId> = batch.iter().map(|reservation| &reservation.sale).collect();
    // Each sale's deadline, the last that was asked for, in the order of the sales' ids.
    let rows: Vec<Row> = answers.rest().collect();
    let deadlines = rows.into_iter().rev().zip(sales.into_iter().rev());
    let deadlines: Result<HashMap<&SaleId, Timestamp>, Fault> =
        deadlines.map(|(mut row, sale)| Ok((sale, parsed(&mut row, 0)?))).collect();
    let deadlines = deadlines?;
    let inserted = |reservation: &Reservation| Settled {
        order_id: reservation.order_id,
        sale: reservation.sale.clone(),
        user: reservation.user.clone(),
        quantity: reservation.quantity,
        units_held: reservation.quantity,
        status: OrderStatus::Unpaid,
        pay_by: deadlines.get(&reservation.sale).copied(),
        outcome: Outcome::Inserted,
    };
    Ok(batch.iter().map(inserted).collect())
}

impl<'b> Part<'b> {
    fn new(sale: KnownSale, orders_max: usize) -> Self {
        Self {
            sale,
            rows: Vec::with_capacity(orders_max * 64),
            users: Vec::with_capacity(orders_max),
            units: 0,
            has_metadata: false,
        }
    }

    fn add(&mut self, reservation: &'b Reservation) -> Option<()> {
        self.sale.terms.amount(reservation.quantity)?;
        // Promised before an edit: by the older terms, which the way that looks first knows.
        if reservation.sale_version.is_some_and(|version| version < self.sale.terms_version) {
            return None;
        }
        self.rows.push(if self.rows.is_empty() { b'[' } else { b',' });
        let user = reservation.user.as_str();
        let Reservation { order_id, quantity, metadata, sale_version, .. } = reservation;
        let row = (order_id.to_string(), user, quantity, metadata.as_deref(), sale_version);
        serde_json::to_writer(&mut self.rows, &row).ok()?;
        let units = u64::from(reservation.quantity);
        self.users.push((user, units));
        self.units += units;
        self.has_metadata |= reservation.metadata.is_some();
        Some(())
    }

    /// As JSON, which the servers read in three quarters of the time that rows of literals take them.
    ///
    /// MariaDB cuts off what is longer than a column of `JSON_TABLE`, without a word: these are as long as anything that comes here. It also copies a
    /// TEXT column into a shorter one without looking, but no expression: hence `CONCAT`. The character set is named, for else it is
    /// the database's, which may have a `?` for what it cannot say.
    fn insert(&self, sale: &SaleId, statements: &mut String) {
        let KnownSale { terms: Terms { price, currency, pay_within_s, .. }, rehearsal, .. } = &self.sale;
        let (column, value, path) = if self.has_metadata {
            (", metadata", ", CONCAT(m)", ", m LONGTEXT CHARACTER SET utf8mb4 PATH '$[3]' ERROR ON ERROR")
        } else {
            ("", "", "")
        };
        let rows = String::from_utf8_lossy(&self.rows);
        // Writing into a String does not fail, here and below.
        let _ = write!(
            statements,
            "SET @floodgate_now = {NOW_TEXT}, @floodgate_pay_by = {pay_by};
             INSERT INTO floodgate_orders (order_id, sale_id, user_id, quantity, units_held, amount, currency, status,
                                           created_at, updated_at, pay_by, version, rehearsal, sale_version{column})
             SELECT o, {sale}, u, q, q, {price} * q, {currency}, '{status}', @floodgate_now, @floodgate_now, @floodgate_pay_by, 1, {rehearsal}, s{value}
             FROM JSON_TABLE({rows}, '$[*]' COLUMNS (
                 o CHAR(26) CHARACTER SET ascii PATH '$[0]' ERROR ON ERROR,
                 u VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[1]' ERROR ON ERROR,
                 q INT UNSIGNED PATH '$[2]' ERROR ON ERROR,
                 s BIGINT UNSIGNED PATH '$[4]' ERROR ON ERROR{path})) AS new_orders;
             SELECT @floodgate_pay_by;",
            pay_by = NOW_TEXT.replace("NOW(3)", &format!("NOW(3) + INTERVAL {pay_within_s} SECOND")),
            sale = Text(sale.as_str()),
            currency = Text(currency),
            status = OrderStatus::Unpaid,
            rows = Text(&(rows + "]")),
        );
    }

    /// Locks the sale's row. Fails if it is gone, is another's, is withdrawn, has other terms, or has too few units left.
    fn take_stock(&self, sale: &SaleId, statements: &mut String) {
        let _ = write!(
            statements,
            "UPDATE floodgate_sales SET sold = sold + {units}, updated_at = {NOW_TEXT}
             WHERE sale_id = {} AND sold + {units} <= total AND created_at = {} AND terms_version = {}
               AND withdrawn_at IS NULL;
             SELECT {TRAP} + (ROW_COUNT() <> 1);",
            Text(sale.as_str()),
            Text(&self.sale.created_at),
            self.sale.terms_version,
            units = self.units,
        );
    }

    /// Fails if one of the users may hold more than the limit with these orders, as if each wanted as much as the one who wants most. None if that is too
    /// much by itself.
    fn count_held(&mut self, sale: &SaleId, statements: &mut String) -> Option<()> {
        self.users.sort_unstable();
        self.users.dedup_by(|next, before| {
            let same = next.0 == before.0;
            before.1 += if same { next.1 } else { 0 };
            same
        });
        let most = self.users.iter().map(|(_, units)| *units).max()?;
        let may_hold = u64::from(self.sale.terms.per_user_limit).checked_sub(most)?;
        *statements += &in_parts(&self.users, |users| {
            let held = format!(
                "FROM floodgate_orders FORCE INDEX (floodgate_orders_user)
                 WHERE sale_id = {} AND user_id IN ({}) AND units_held > 0",
                Text(sale.as_str()),
                list(users.iter().map(|(user, _)| user))
            );
            match may_hold {
                0 => format!("SELECT {TRAP} + COUNT(*) {held};"),
                _ => format!(
                    "SELECT {TRAP} + COUNT(*)
                     FROM (SELECT user_id {held} GROUP BY user_id HAVING SUM(units_held) > {may_hold}) AS too_many;"
                ),
            }
        });
        Some(())
    }
}

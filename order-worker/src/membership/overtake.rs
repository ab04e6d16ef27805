//! An orders database that was put back to an older state while processes run: seen by the ledger, which knows more of a sale than its
//! row, and by the own log, whose finished records have no rows. Begins no life while nothing was put back, and never merges a log.
//!
//! A ledger that is ahead is rebuilt from the rows. But an order that a log has handed over, and that is no row any more, is in no ledger
//! that is built from rows and undrained records: its units would be sold again. So no such log is merged (`merge.rs`), which keeps
//! the ledger closed, and its process promises nothing more, until an operator has had the log hand its records over again.

use std::time::Duration;

use stock::ledger::Snapshot;
use stock::{LedgerError, Stopped};
use tokio::time::Instant;

use super::Member;
use super::merge::RebuildError;
use super::round::Standing;
use super::same_database::LastHanded;
use crate::database::{Ahead, SaleRow};

/// Between two looks at the newest finished records of an own log.
const LOOK: Duration = Duration::from_secs(2);

/// What tells that rows have gone while nothing else changed.
#[derive(Default)]
pub(super) struct RowWatch {
    handed: LastHanded,
    looked_at: Option<Instant>,
}

impl Member {
    /// The next step that is missing; where all is well, whether the database still has what our log has handed over.
    pub(super) async fn round(&mut self) -> Result<Standing, RebuildError> {
        let standing = match self.next_step().await {
            Ok(Standing::Open) => self.still_has_rows().await.map(|()| Standing::Open),
            standing => standing,
        };
        if let (Err(error), Some(own)) = (&standing, &self.own)
            && let Some(why) = error.stops(own.owner)
        {
            own.epoch_gate.stop(why);
        }
        standing
    }

    /// The ledger that is open knows those orders, and sells their units to nobody: it is left as it is.
    async fn still_has_rows(&mut self) -> Result<(), RebuildError> {
        let Some(own) = self.own.clone() else { return Ok(()) };
        let is_early = self.rows.looked_at.is_some_and(|at| at.elapsed() < LOOK);
        if is_early || own.epoch_gate.stopped() == Some(Stopped::OrdersLost) {
            return Ok(());
        }
        self.rows.looked_at = Some(Instant::now());
        match self.rows.handed.look(&own.topic, &self.database).await? {
            Some(order) => Err(RebuildError::OrdersLost { owner: own.owner, order }),
            None => Ok(()),
        }
    }

    // ## any epoch of a database that was put back => the next one, above what the ledger has of every sale
    /// The ledger knows more than the database: more lives, or newer versions of a sale, which it would keep against the rows. Those rows
    /// are the truth that is left, so their versions go above the ledger's in the step that begins the life; but a pause stays.
    pub(super) async fn overtake(&mut self, epoch: u64) -> Result<(), RebuildError> {
        let mut above = Vec::new();
        for row in self.database.unsettled_sales().await? {
            match self.stock.snapshot(&row.definition.id).await {
                Ok(Snapshot { epoch, version, paused, .. }) => {
                    self.behind = self.behind.max(epoch);
                    above.push((row.definition.id, Ahead { version, paused }));
                }
                Err(LedgerError::UnknownSale(_) | LedgerError::Amnesia | LedgerError::Foreign { .. }) => {}
                // What it has is not known yet: the next round begins anew.
                Err(error) => return Err(error.into()),
            }
        }
        self.begin_above(epoch, &above).await.map(drop)
    }

    /// Whether the ledger has a version of the sale that the database has not, though a version is a row first.
    pub(super) async fn is_newer(&self, row: &SaleRow, snapshot: &Snapshot) -> Result<bool, RebuildError> {
        let is_newer = |row: &SaleRow| {
            let is_other = snapshot.total != row.total || snapshot.paused != row.paused_by.is_some();
            snapshot.version > row.version || snapshot.version == row.version && is_other
        };
        // `row` was read before the ledger was asked: a change may have come between, and is a row by now.
        Ok(is_newer(row) && self.database.sale(&row.definition.id).await?.is_some_and(|row| is_newer(&row)))
    }

    // ## Open without a log that lacks rows => the next epoch, closed
    /// A log that must not be merged: no sale is to be open without it. One whose row says never opened is, and its row knows better
    /// from then on.
    pub(super) async fn close_without(&mut self) -> Result<(), RebuildError> {
        if self.view.any_is_open() {
            self.begin_after(self.view.epoch).await?;
        }
        Ok(())
    }
}

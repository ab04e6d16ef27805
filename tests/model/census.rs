//! Which of the rare things happened in a run, so that a green run can say what it was green about. Judges nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;

use stock::ledger::Happened;

use crate::strikes::Counts;

/// One rare thing, in words.
pub(crate) type Event = &'static str;

pub(crate) const ADOPTED: Event = "a dead instance's reservations appended by another";
pub(crate) const THAWED_LATE: Event = "an instance thawed after its lease had ended";
pub(crate) const LOST_IN_MID_BATCH: Event = "memory lost while a batch's answer was on its way";
pub(crate) const LOST_IN_MID_REBUILD: Event = "memory lost again while it was being rebuilt";
pub(crate) const NEIGHBOUR: Event = "a dead instance's log merged by a neighbour";
pub(crate) const RESTOCKED: Event = "a restock while the ledger was being rebuilt";
pub(crate) const USED_AGAIN: Event = "a cancelled order's pass pressed during a rebuild";
pub(crate) const LATER_LIFE: Event = "a cancelled order's pass pressed in a later epoch";
pub(crate) const COMMIT_LOST: Event = "the reply to a COMMIT lost";
pub(crate) const LATE_BATCH: Event = "a batch carried out after its sender gave it up";
pub(crate) const LATE_BATCH_REFUSED: Event = "a batch that came too late refused";
pub(crate) const LATE_INSTALL: Event = "an install carried out after its sender gave it up";
pub(crate) const LATE_INSTALL_REFUSED: Event = "an install of an older epoch refused";
pub(crate) const WITHOUT_LOG: Event = "a rebuild without a log that is lost";
pub(crate) const PROMISES_MERGED: Event = "a ledger opened that knew promises from before";
pub(crate) const LETTER_AT_START: Event = "a start with a promise among the dead letters";
pub(crate) const WORKER_LOG_FULL: Event = "a worker's own log full while the drain went on";
pub(crate) const WORKER_LOG_LOST: Event = "a failed write to a worker's own log, which was opened anew";
pub(crate) const REST_WITHOUT_WORKER_LOG: Event = "rest while a worker's own log took nothing";

pub(crate) const ELSEWHERE: Event = "a process on another ledger refused while others see the recorded one";
pub(crate) const MOVED: Event = "the sales moved to another ledger when nobody saw theirs";
pub(crate) const STARTED_ELSEWHERE: Event = "a start over another orders database, which the log refused";
pub(crate) const CLOCK_STEPPED: Event = "a clock of one of two ledger servers stepped";
pub(crate) const PAID: Event = "an order paid";
pub(crate) const PAID_LATE: Event = "a payment that came after its order was closed";
pub(crate) const PAID_TWICE: Event = "an order paid by two channels";
pub(crate) const PAID_BEFORE_ITS_ROW: Event = "a payment before its order's row, joined later";
pub(crate) const CLOSED_UNPAID: Event = "an order closed since nobody paid it";

/// All of them: a long run has to see each.
pub(crate) const ALL: [Event; 28] = [
    ADOPTED,
    THAWED_LATE,
    LOST_IN_MID_BATCH,
    LOST_IN_MID_REBUILD,
    NEIGHBOUR,
    RESTOCKED,
    USED_AGAIN,
    LATER_LIFE,
    COMMIT_LOST,
    LATE_BATCH,
    LATE_BATCH_REFUSED,
    LATE_INSTALL,
    LATE_INSTALL_REFUSED,
    WITHOUT_LOG,
    PROMISES_MERGED,
    LETTER_AT_START,
    CLOCK_STEPPED,
    ELSEWHERE,
    MOVED,
    WORKER_LOG_FULL,
    WORKER_LOG_LOST,
    REST_WITHOUT_WORKER_LOG,
    STARTED_ELSEWHERE,
    PAID,
    PAID_LATE,
    PAID_TWICE,
    PAID_BEFORE_ITS_ROW,
    CLOSED_UNPAID,
];

/// Of one run.
#[derive(Default)]
pub(crate) struct Census(RefCell<BTreeSet<Event>>);

impl Census {
    pub(crate) fn saw(&self, event: Event) {
        self.0.borrow_mut().insert(event);
    }

    /// All that was seen, with what failpoints and the ledger's server tell of the run.
    pub(crate) fn close(&self, counts: &Counts, happened: &Happened) -> BTreeSet<Event> {
        let of = |name: &str| counts.get(name).copied().unwrap_or_default();
        let passed = |name| of(name).passed > 0;
        let failed = |name| of(name).failed > 0;
        let told = [
            (ADOPTED, passed("gateway.adopted")),
            (NEIGHBOUR, passed("rebuild.neighbour")),
            (COMMIT_LOST, failed("database.committed")),
            (LOST_IN_MID_BATCH, happened.lost_in_mid_batch > 0),
            (LOST_IN_MID_REBUILD, happened.lost_in_mid_rebuild > 0),
            (LATE_BATCH, happened.late_batches > 0),
            (LATE_BATCH_REFUSED, happened.late_batches_refused > 0),
            (LATE_INSTALL, happened.late_installs > 0),
            (LATE_INSTALL_REFUSED, happened.late_installs_refused > 0),
        ];
        for (event, happened) in told {
            if happened {
                self.saw(event);
            }
        }
        self.0.borrow().clone()
    }
}

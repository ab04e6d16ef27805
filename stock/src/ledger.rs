//! The stock ledger's port: exact, atomic reservation in memory, and the memory of every order id that took units.
//!
//! The ledger is a fast *filter*; the database is the truth of what was sold. Every adapter
//! - MUST carry out each call on one sale atomically; a call on one sale never touches another;
//! - MUST move an id forward only: absent < pending < confirmed < released. Skipping is allowed; anything else
//!   changes nothing and is no error, so the order in which calls arrive does not matter;
//! - MUST take units when an id leaves absent for pending or confirmed (confirm may push `remaining` below 0),
//!   and give them back when it enters released from those; absent → released moves no unit;
//! - MUST keep `total = remaining + pending + confirmed`, always;
//! - MUST bump the flag's counter in the step that makes `remaining` ≤ 0 or > 0, and answer with the flag's state;
//! - MUST check a reserve batch in this order: sale known, open (no rebuild), epoch, batch deadline in ledger time (past it
//!   nothing is taken, so that after it absence is final, also where the clock was put back by more than [`DEADLINE_AHEAD_MS_MAX`]); then for each request: the id itself (pending or confirmed
//!   give the same answer as the first time, released says `PassUsed`, whatever window, limit or stock say now), terms
//!   (see [`ReserveBatch::terms_version`]), pause, window by the ledger's clock, limit, stock. Validation of the whole call comes before its first write;
//! - MUST remember the whole reservation with its owner while it is pending; when a confirm names another quantity than the
//!   pending reservation, the confirm's counts from then on, since the database is the truth;
//! - MUST keep every id until its sale is forgotten;
//! - MUST remember of each user which ids hold units, the [`MINE_MAX`] newest, in the step that takes the units, and forget an id in
//!   the step that gives them back;
//! - MUST accept confirm, release and restore while closed for a rebuild, and refuse reserve, grant and states; once open, MUST
//!   refuse restore;
//! - MUST apply a pushed sale version only if newer; `remaining` then moves by the difference in total;
//! - MUST count only passes whose `counts_until_ms` is ahead by the ledger's clock and whose id is still absent (a used id frees its
//!   place), and MUST hand a user's live pass out again until it expires, whether it counts or not;
//! - MUST answer [`LedgerError::Amnesia`], with nothing carried out, to any call on a sale whose state was installed in another
//!   life of the memory that holds it (a restart, a promoted replica), pending and snapshot included. An install at a newer
//!   epoch replaces such a state; one at its own epoch is refused with it;
//! - MUST answer [`LedgerError::Foreign`], with nothing carried out, to any call on a sale whose state another deployment installed, at
//!   whatever epoch; [`Ledger::adopt`] alone takes such a state, and what it leaves answers `Amnesia` until an install, at any
//!   epoch, replaces it. A state that names no deployment is foreign to all (`none`'s): no tagged version left it;
//! - MUST hold a lease by the clock of the server that holds the leases: the last renewal decides until when. Leases belong to no
//!   sale, move nothing and may be forgotten with the rest: an absent one says that nobody renewed it, not that somebody died;
//! - MUST name the server that holds a sale and the one that holds the leases, without I/O, and judge every call on a sale by that
//!   server's one clock. "The ledger's clock" above is always that one. Clocks of two servers may differ by any amount and step
//!   each for itself: a time of one MUST never be compared with a time of another. A sale may move to another server (a
//!   cluster's slot): who keeps a sale's server asks again every second;
//! - MUST name, without I/O, the memory that it is connected to ([`Ledger::sight`]): by another name whenever a call could answer
//!   `Amnesia` where it did not before, by the same one to every process that is connected to the same memory.
//!
//! A lost answer is [`LedgerError::Uncertain`]: the caller may repeat the call, which is harmless.

mod books;
mod embedded;
pub mod epoch_gate;
mod error;
pub(crate) mod foreign;
mod gate;
pub(crate) mod recorded;
#[cfg(feature = "redis")]
pub mod redis;
mod sight;
#[cfg(feature = "simulation")]
mod simulated;

#[cfg(feature = "redis")]
pub use self::redis::RedisLedger;
pub use embedded::EmbeddedLedger;
pub use error::LedgerError;
pub use gate::counts_until_ms;
pub use sight::{LedgerIdentity, LedgerSight};
#[cfg(feature = "simulation")]
pub use simulated::{FaultPlan, Happened, Opening, Placing, SimulatedLedger, SimulatedServer};

use crate::{FlagState, OrderId, Owner, Reservation, SaleId, SaleVersion, UserId};

/// The adapters. Every method is one atomic call on one sale.
#[derive(Debug, Clone)]
pub enum Ledger {
    /// In this process's memory; dies with it.
    Embedded(EmbeddedLedger),
    /// In Redis, shared by all processes.
    #[cfg(feature = "redis")]
    Redis(RedisLedger),
    /// Outside the simulated process, with seeded faults.
    #[cfg(feature = "simulation")]
    Simulated(SimulatedLedger),
}

/// Sends one call to whichever adapter there is: the embedded one answers at once.
macro_rules! adapter {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Ledger::Embedded(ledger) => ledger.$method($($argument),*),
            #[cfg(feature = "redis")]
            Ledger::Redis(ledger) => ledger.$method($($argument),*).await,
            #[cfg(feature = "simulation")]
            Ledger::Simulated(ledger) => ledger.$method($($argument),*).await,
        }
    };
}

/// # Errors
/// Every method: [`LedgerError`]. After [`LedgerError::Uncertain`] the same call may be repeated; every other error says that
/// nothing was carried out.
impl Ledger {
    /// The server that holds `sale`, and whose clock its deadlines, window and passes go by. Asks nobody.
    #[must_use]
    #[cfg_attr(not(feature = "simulation"), allow(unused_variables, reason = "one server holds all"))]
    pub fn server_of(&self, sale: &SaleId) -> LedgerServer {
        match self {
            #[cfg(feature = "simulation")]
            Self::Simulated(ledger) => ledger.server_of(sale),
            #[cfg(feature = "redis")]
            Self::Redis(_) => LedgerServer::FIRST,
            Self::Embedded(_) => LedgerServer::FIRST,
        }
    }

    /// What this process sees of the ledger now; `None`: it is in this process's memory, where nobody else can see it. Asks nobody.
    pub fn sight(&self) -> Result<Option<LedgerSight>, LedgerError> {
        match self {
            Self::Embedded(_) => Ok(None),
            #[cfg(feature = "redis")]
            Self::Redis(ledger) => ledger.sight().map(Some),
            #[cfg(feature = "simulation")]
            Self::Simulated(ledger) => ledger.sight().map(Some),
        }
    }

    /// The server that holds the leases. Its clock serves for whatever belongs to no sale. Asks nobody.
    #[must_use]
    pub fn leases_server(&self) -> LedgerServer {
        LedgerServer::FIRST
    }

    /// The time of one server, milliseconds since the Unix epoch.
    #[cfg_attr(not(feature = "simulation"), allow(unused_variables, reason = "one server holds all"))]
    pub async fn now_ms(&self, server: LedgerServer) -> Result<u64, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.now_ms(),
            #[cfg(feature = "redis")]
            Self::Redis(ledger) => ledger.now_ms().await,
            #[cfg(feature = "simulation")]
            Self::Simulated(ledger) => ledger.now_ms(server).await,
        }
    }

    /// Whether one server could write a reservation now: one whose memory is full or that takes no writes says no, though it still
    /// tells the time.
    pub async fn ready(&self, server: LedgerServer) -> Result<(), LedgerError> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(ledger) => ledger.ready().await,
            other => other.now_ms(server).await.map(drop),
        }
    }

    /// Takes units for a batch of attempts, in their order. See the contract for the order of its checks.
    pub async fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        adapter!(self.reserve(batch))
    }

    /// Asks the gate for one more pass. With `passes_per_unit` = 0 nothing is counted.
    pub async fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        adapter!(self.grant(sale, epoch, request))
    }

    /// Tells that the database holds these orders with their units: absent or pending → confirmed.
    pub async fn confirm(&self, sale: &SaleId, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        adapter!(self.confirm(sale, settled))
    }

    /// Tells that the database holds these orders without units: any → released.
    pub async fn release(&self, sale: &SaleId, settled: &[Settlement]) -> Result<FlagState, LedgerError> {
        adapter!(self.release(sale, settled))
    }

    /// Where each id stands, in the order asked. [`LedgerError::Closed`] during a rebuild, when absence means nothing.
    pub async fn states(&self, sale: &SaleId, ids: &[OrderId]) -> Result<Vec<IdState>, LedgerError> {
        adapter!(self.states(sale, ids))
    }

    /// Pending reservations (of one owner, or of all) with ids above `after`, ordered by id, at most `limit`.
    pub async fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        adapter!(self.pending(sale, owner, after, limit))
    }

    /// Which ids hold units for a user, at most [`MINE_MAX`], in the order in which they came to hold them; each with its reservation
    /// while it is pending. [`LedgerError::Closed`] during a rebuild, when absence means nothing.
    pub async fn mine(&self, sale: &SaleId, user: &UserId) -> Result<Vec<Mine>, LedgerError> {
        adapter!(self.mine(sale, user))
    }

    /// The sale's books, taken in one step.
    pub async fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        adapter!(self.snapshot(sale))
    }

    /// Tells the sale's row as it is now. Newer wins; [`LedgerError::UnknownSale`] if the sale was never installed.
    pub async fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        adapter!(self.push_sale(version))
    }

    /// Replaces whatever is held of the sale by an empty closed state of a newer epoch, which [`Self::open`] opens. Of the
    /// given and a known sale version the newer stays. A repeat at the same epoch changes nothing, open or closed; an older epoch
    /// is [`LedgerError::WrongEpoch`].
    pub async fn install(&self, version: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        adapter!(self.install(version, epoch))
    }

    /// Merges promises of one log into a closed state: absent → pending. [`LedgerError::Open`] once it is open.
    pub async fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        adapter!(self.restore(sale, epoch, owner, reservations))
    }

    /// Ends the rebuild of this epoch, and ties the sale to this deployment where it names none. Repeats change nothing.
    pub async fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        adapter!(self.open(sale, epoch))
    }

    /// Forgets a sale that the database marked settled. Repeats change nothing.
    pub async fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        adapter!(self.forget(sale))
    }

    /// Takes a sale over from another deployment, whose state is gone afterwards: see the contract. Answers with the epoch that it had;
    /// `None`: it is not another's, and nothing changed.
    pub async fn adopt(&self, sale: &SaleId) -> Result<Option<u64>, LedgerError> {
        adapter!(self.adopt(sale))
    }

    /// Renews the lease of an instance: until `ttl_ms` from now it counts as alive. Answers the time of the leases' server.
    pub async fn renew_lease(&self, owner: Owner, ttl_ms: u64) -> Result<u64, LedgerError> {
        adapter!(self.renew_lease(owner, ttl_ms))
    }

    /// Ends one's own lease (clean shutdown). Repeats change nothing.
    pub async fn end_lease(&self, owner: Owner) -> Result<(), LedgerError> {
        adapter!(self.end_lease(owner))
    }

    /// The time of the leases' server, and by owner every lease that has not ended with the time at which it will. An owner that
    /// is absent has none.
    pub async fn leases(&self) -> Result<(u64, Vec<(Owner, u64)>), LedgerError> {
        adapter!(self.leases())
    }
}

/// One of the ledger's servers, by a small number that the adapter gives it: whose clock a time belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerServer(u8);

impl LedgerServer {
    /// The first one: the only one of a ledger on one server.
    pub const FIRST: Self = Self(0);
    /// Most servers of a ledger.
    pub const COUNT_MAX: usize = 256;

    /// Below [`Self::COUNT_MAX`]: a place in a table, and what [`Self::numbered`] takes.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The server of this number.
    #[must_use]
    pub fn numbered(number: u8) -> Self {
        Self(number)
    }
}

/// Reservations of one sale that gathered while the last batch was under way.
#[derive(Debug, Clone)]
pub struct ReserveBatch {
    /// One batch, one sale.
    pub sale: SaleId,
    /// The ledger life that the caller knows; another one refuses the batch.
    pub epoch: u64,
    /// Time of the sale's server past which nothing of it is taken, at most 1 s ahead. See [`DEADLINE_AHEAD_MS_MAX`].
    pub deadline_ms: u64,
    /// Whose log the winners go to.
    pub owner: Owner,
    /// See [`SaleVersion::terms_version`]: what the buyers were shown. Other terms refuse each new id.
    pub terms_version: u64,
    /// At most [`BATCH_MAX`].
    pub requests: Vec<ReserveRequest>,
}

/// A batch's deadline that lies further ahead is of a clock that was put back since: it has passed.
pub const DEADLINE_AHEAD_MS_MAX: u64 = 30_000;

/// Most requests in a [`ReserveBatch`], and most ids in any other call.
pub const BATCH_MAX: usize = 512;

/// Most ids that are remembered of one user: of a user who holds more, the newest.
pub const MINE_MAX: usize = 64;

/// An id that holds units for its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mine {
    /// Which order.
    pub order_id: OrderId,
    /// While it is pending: whose log it goes to, and what is remembered of it.
    pub pending: Option<(Owner, Reservation)>,
}

/// One buyer's attempt.
#[derive(Debug, Clone)]
pub struct ReserveRequest {
    /// From the pass.
    pub order_id: OrderId,
    /// From the pass.
    pub user: UserId,
    /// At least 1.
    pub quantity: u32,
    /// The buyer's own.
    pub metadata: Option<Box<str>>,
}

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReserveOutcome {
    /// Units are held for this id. `first` tells whether this call took them; `reservation` is what is remembered, which on a
    /// repeat is the first attempt's, whatever the repeat asked for.
    Pending {
        /// Whether this call took them.
        first: bool,
        /// What is remembered.
        reservation: Reservation,
    },
    /// The database has the order.
    Confirmed,
    /// The id has been released (closed, cancelled or rejected): a new pass is needed.
    PassUsed,
    /// The ledger has other terms than the batch names.
    TermsDiffer,
    /// The sale is paused.
    Paused,
    /// The window has not begun by the ledger's clock.
    NotStarted,
    /// The window is over.
    Ended,
    /// The user would hold more than the limit.
    LimitReached {
        /// What the user holds already: see [`Ledger::mine`].
        order_ids: Vec<OrderId>,
    },
    /// Fewer units are left than asked for.
    NotEnough {
        /// How many are left; at least 1.
        remaining: u32,
    },
    /// None is left.
    SoldOut,
}

/// A batch's outcomes, in the order of its requests.
#[derive(Debug, Clone)]
pub struct ReserveAnswer {
    /// One for each request.
    pub outcomes: Vec<ReserveOutcome>,
    /// The flag after the batch.
    pub flag: FlagState,
    /// Time of the batch, by the sale's server.
    pub now_ms: u64,
}

/// An id with what is needed to take or return its units when the ledger has never heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which order.
    pub order_id: OrderId,
    /// Whose limit it counts against.
    pub user: UserId,
    /// Units.
    pub quantity: u32,
}

/// Where an id stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdState {
    /// Never heard of.
    Absent,
    /// Promised or about to be; not yet seen in the database.
    Pending,
    /// In the database, units held.
    Confirmed,
    /// In the database, no units held.
    Released,
}

/// A request for the gate's consent to hand out a pass.
#[derive(Debug, Clone)]
pub struct GrantRequest {
    /// Who asks.
    pub user: UserId,
    /// The id that a new pass would name.
    pub order_id: OrderId,
    /// Time of the sale's server at which the pass ends; until then it is its user's only one.
    pub expires_at_ms: u64,
    /// Time of the sale's server from which on it no longer counts: see [`counts_until_ms`].
    pub counts_until_ms: u64,
}

/// The gate's answer. Only unused passes that still count do, against `passes_per_unit × remaining`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantOutcome {
    /// Counted: hand the pass out.
    Granted,
    /// This user holds a live pass already: hand out the same one.
    Existing {
        /// The id that it names.
        order_id: OrderId,
        /// When it ends.
        expires_at_ms: u64,
    },
    /// As many passes are out as the stock allows.
    GateFull,
    /// No unit is left.
    SoldOut,
}

/// One sale's books. `total = remaining + pending + confirmed`, in units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The ledger life that speaks.
    pub epoch: u64,
    /// Of the sale's row, as last pushed.
    pub version: u64,
    /// Units on offer.
    pub total: u32,
    /// Below 0 when the database sold what the ledger had forgotten.
    pub remaining: i64,
    /// Units of ids that are pending.
    pub pending: u64,
    /// Units of ids that are confirmed.
    pub confirmed: u64,
    /// False while a rebuild is under way.
    pub open: bool,
    /// As last pushed.
    pub paused: bool,
    /// The flag.
    pub flag: FlagState,
}

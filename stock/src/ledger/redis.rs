//! The ledger in Redis: each call is one script of `lua/redis/`, so one atomic step on one sale.
//!
//! This file turns calls into scripts and answers into outcomes. Rules live in the scripts, connections in `link`. It decides
//! nothing by itself and never repeats a call whose answer was lost: that is for the caller, who knows what is still wanted.

mod audit;
mod deploy;
mod leases;
mod link;
mod scripts;
mod server;
mod start_error;
mod wire;

use std::fmt;
use std::sync::Arc;

use redis::{Cmd, Value};

pub use audit::{AuditError, Counted, LongPending, RedisAudit, SaleAudit};
pub use deploy::{Deployed, DeployedScript, deploy_scripts};
pub use server::Patience;
pub use start_error::RedisStartError;

use self::link::{Links, Turn};
use self::scripts::Script;
use self::server::Target;
use self::wire::{Answer, KeySet, Packed, SaleKeys};
use super::books::{check_call, check_size};
use super::{
    GrantOutcome, GrantRequest, IdState, LedgerError, LedgerSight, Mine, ReserveAnswer, ReserveBatch,
    ReserveOutcome, ReserveRequest, Settlement, Snapshot,
};
use crate::{
    DeploymentId, FlagState, FlagVersion, OrderId, Owner, Reservation, SaleId, SaleVersion, StockConfig,
    UserId,
};

/// See the module. Clones share one connection; any runtime may call.
#[derive(Clone)]
pub struct RedisLedger {
    inner: Arc<Inner>,
}

struct Inner {
    links: Links,
    key_prefix: String,
    /// As the scripts are told it.
    deployment: String,
}

impl fmt::Debug for RedisLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLedger").field("key_prefix", &self.inner.key_prefix).finish_non_exhaustive()
    }
}

/// Attempts from which on the batch's script costs Redis less than one script each.
const BATCH_SCRIPT_MIN: usize = 2;

impl RedisLedger {
    /// Connects for `deployment`, tries for up to 10 s, and reconnects by itself from then on.
    ///
    /// # Errors
    /// [`RedisStartError`], at once if waiting cannot help.
    pub async fn connect(config: &StockConfig, deployment: DeploymentId) -> Result<Self, RedisStartError> {
        Self::connect_with(config, deployment, Patience::default()).await
    }

    /// The same for callers that can wait longer, or less long.
    ///
    /// # Errors
    /// [`RedisStartError`], at once if waiting cannot help.
    pub async fn connect_with(
        config: &StockConfig,
        deployment: DeploymentId,
        patience: Patience,
    ) -> Result<Self, RedisStartError> {
        let links = Links::open(Target::new(config)?, patience).await?;
        let (key_prefix, deployment) = (config.key_prefix.clone(), deployment.to_string());
        Ok(Self { inner: Arc::new(Inner { links, key_prefix, deployment }) })
    }

    pub(super) fn sight(&self) -> Result<LedgerSight, LedgerError> {
        self.inner.links.sight()
    }

    pub(super) async fn ready(&self) -> Result<(), LedgerError> {
        self.call(&scripts::PROBE, [].into_iter(), |_| {}).await.map(drop)
    }

    pub(super) async fn now_ms(&self) -> Result<u64, LedgerError> {
        self.call(&scripts::NOW, [].into_iter(), |_| {}).await?.number()
    }

    pub(super) async fn reserve(&self, batch: &ReserveBatch) -> Result<ReserveAnswer, LedgerError> {
        check_call(batch.requests.iter().map(|request| request.quantity))?;
        let turn = self.inner.links.batch_turn().await?;
        if batch.requests.len() >= BATCH_SCRIPT_MIN || batch.requests.is_empty() {
            self.reserve_many(batch, turn).await
        } else {
            self.reserve_one(batch, &batch.requests[0], turn).await
        }
    }

    async fn reserve_many(&self, batch: &ReserveBatch, turn: Turn<'_>) -> Result<ReserveAnswer, LedgerError> {
        let requests = &batch.requests;
        let mut packed = Packed::with_capacity(16 + 48 * requests.len());
        packed.ids(requests.iter().map(|request| request.order_id));
        packed.users(requests.iter().map(|request| &request.user));
        packed.numbers(requests.iter().map(|request| request.quantity));
        packed.metadata(requests.iter().map(|request| request.metadata.as_deref()));
        packed.flag(repeats(requests));
        let answer = self.step(&scripts::RESERVE, &batch.sale, KeySet::All, turn, |call| {
            begin_reserve(call, batch).arg(packed.into_bytes());
        });
        reserve_answer(batch, answer.await?)
    }

    async fn reserve_one(
        &self,
        batch: &ReserveBatch,
        request: &ReserveRequest,
        turn: Turn<'_>,
    ) -> Result<ReserveAnswer, LedgerError> {
        let answer = self.step(&scripts::RESERVE_ONE, &batch.sale, KeySet::All, turn, |call| {
            begin_reserve(call, batch)
                .arg(&request.order_id.0.to_be_bytes()[..])
                .arg(request.user.as_str())
                .arg(request.quantity)
                .arg(request.metadata.as_deref());
        });
        reserve_answer(batch, answer.await?)
    }

    pub(super) async fn grant(
        &self,
        sale: &SaleId,
        epoch: u64,
        request: &GrantRequest,
    ) -> Result<(GrantOutcome, FlagState), LedgerError> {
        let mut answer = self
            .sale_call(&scripts::GRANT, sale, KeySet::All, |call| {
                call.arg(epoch)
                    .arg(request.user.as_str())
                    .arg(&request.order_id.0.to_be_bytes()[..])
                    .arg(request.expires_at_ms)
                    .arg(request.counts_until_ms.min(request.expires_at_ms));
            })
            .await?;
        let flag = flag(epoch, answer.number()?, answer.number()?);
        let outcome = match answer.bytes()?.as_slice() {
            b"G" => GrantOutcome::Granted,
            b"H" => {
                let expires_at_ms = answer.number()?;
                let order_id = wire::order_id(&answer.bytes()?)?;
                GrantOutcome::Existing { order_id, expires_at_ms }
            }
            b"F" => GrantOutcome::GateFull,
            b"X" => GrantOutcome::SoldOut,
            other => return Err(wire::strange(&Value::BulkString(other.to_vec()))),
        };
        Ok((outcome, flag))
    }

    pub(super) async fn confirm(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        self.settle(sale, "c", settled).await
    }

    pub(super) async fn release(
        &self,
        sale: &SaleId,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        self.settle(sale, "r", settled).await
    }

    async fn settle(
        &self,
        sale: &SaleId,
        target: &str,
        settled: &[Settlement],
    ) -> Result<FlagState, LedgerError> {
        check_call(settled.iter().map(|settlement| settlement.quantity))?;
        let mut packed = Packed::with_capacity(16 + 48 * settled.len());
        packed.ids(settled.iter().map(|settlement| settlement.order_id));
        packed.users(settled.iter().map(|settlement| &settlement.user));
        packed.numbers(settled.iter().map(|settlement| settlement.quantity));
        let answer = self.sale_call(&scripts::SETTLE, sale, KeySet::All, |call| {
            call.arg(target).arg(packed.into_bytes());
        });
        flag_answer(answer.await?)
    }

    pub(super) async fn states(&self, sale: &SaleId, ids: &[OrderId]) -> Result<Vec<IdState>, LedgerError> {
        check_size(ids.len())?;
        let packed: Vec<u8> = ids.iter().flat_map(|id| id.0.to_be_bytes()).collect();
        let answer = self.sale_call(&scripts::STATES, sale, KeySet::BooksAndOrders, |call| {
            call.arg(packed);
        });
        let letters = answer.await?.bytes()?;
        if letters.len() != ids.len() {
            return Err(wire::strange(&Value::BulkString(letters)));
        }
        letters.into_iter().map(wire::id_state).collect()
    }

    pub(super) async fn pending(
        &self,
        sale: &SaleId,
        owner: Option<Owner>,
        after: Option<OrderId>,
        limit: usize,
    ) -> Result<Vec<(Owner, Reservation)>, LedgerError> {
        check_size(limit)?;
        let owner = owner.map_or(Vec::new(), |owner| owner.0.to_be_bytes().to_vec());
        let mut after = after.map_or(Vec::new(), |id| id.0.to_be_bytes().to_vec());
        let mut found = Vec::new();
        // Each round files or looks at a bounded number of ids; those of other owners may fill many rounds. What became
        // pending after the call began need not be listed: so much is filed and no more.
        let mut to_file: Option<u64> = None;
        loop {
            let next =
                after.as_slice().try_into().map(u128::from_be_bytes).ok().and_then(|id| id.checked_add(1));
            let next = next.map_or(Vec::new(), |id| id.to_be_bytes().to_vec());
            let answer = self.sale_call(&scripts::PENDING, sale, KeySet::All, |call| {
                call.arg(&owner)
                    .arg(&after)
                    .arg(limit - found.len())
                    .arg(next)
                    .arg(u8::from(to_file == Some(0)));
            });
            let mut answer = answer.await?;
            if answer.bytes()? == b"FRESH" {
                let (filed, left) = (answer.number::<u64>()?, answer.number::<u64>()?);
                to_file = Some(to_file.map_or(left, |to_file| to_file.saturating_sub(filed)));
                continue;
            }
            after = answer.bytes()?;
            while !answer.is_done() {
                let id = wire::pending_member(&answer.bytes()?)?;
                found.push(wire::reservation(id, sale, &answer.bytes()?)?);
            }
            if after.is_empty() || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    pub(super) async fn mine(&self, sale: &SaleId, user: &UserId) -> Result<Vec<Mine>, LedgerError> {
        let answer = self.sale_call(&scripts::MINE, sale, KeySet::All, |call| {
            call.arg(user.as_str());
        });
        let mut answer = answer.await?;
        let mut mine = Vec::new();
        while !answer.is_done() {
            let (order_id, value) = (wire::order_id(&answer.bytes()?)?, answer.bytes()?);
            let pending = (value.first() == Some(&b'p')).then(|| wire::reservation(order_id, sale, &value));
            mine.push(Mine { order_id, pending: pending.transpose()? });
        }
        Ok(mine)
    }

    pub(super) async fn snapshot(&self, sale: &SaleId) -> Result<Snapshot, LedgerError> {
        let mut answer = self.sale_call(&scripts::SNAPSHOT, sale, KeySet::Books, |_| {}).await?;
        let epoch = answer.number()?;
        let version = answer.number()?;
        let total = answer.number()?;
        let remaining = answer.number()?;
        let pending = answer.number()?;
        let confirmed = answer.number()?;
        let open = answer.number::<u8>()? == 1;
        let paused = answer.number::<u8>()? == 1;
        let flag = flag(epoch, remaining, answer.number()?);
        Ok(Snapshot { epoch, version, total, remaining, pending, confirmed, open, paused, flag })
    }

    pub(super) async fn push_sale(&self, version: &SaleVersion) -> Result<FlagState, LedgerError> {
        let answer = self.sale_call(&scripts::PUSH_SALE, &version.sale, KeySet::Books, |call| {
            sale_arguments(call, version);
        });
        flag_answer(answer.await?)
    }

    pub(super) async fn install(&self, version: &SaleVersion, epoch: u64) -> Result<(), LedgerError> {
        let answer = self.sale_call(&scripts::INSTALL, &version.sale, KeySet::All, |call| {
            sale_arguments(call.arg(epoch), version);
        });
        answer.await.map(drop)
    }

    pub(super) async fn restore(
        &self,
        sale: &SaleId,
        epoch: u64,
        owner: Owner,
        reservations: &[Reservation],
    ) -> Result<(), LedgerError> {
        check_call(reservations.iter().map(|reservation| reservation.quantity))?;
        let mut packed = Packed::with_capacity(16 + 64 * reservations.len());
        packed.ids(reservations.iter().map(|reservation| reservation.order_id));
        packed.users(reservations.iter().map(|reservation| &reservation.user));
        packed.numbers(reservations.iter().map(|reservation| reservation.quantity));
        packed.array(reservations.len());
        reservations.iter().for_each(|r| packed.text(r.reserved_at_ms.to_string().as_bytes()));
        packed.metadata(reservations.iter().map(|reservation| reservation.metadata.as_deref()));
        packed.array(reservations.len());
        reservations.iter().for_each(|r| packed.text(r.sale_version.unwrap_or(0).to_string().as_bytes()));
        let answer = self.sale_call(&scripts::RESTORE, sale, KeySet::All, |call| {
            call.arg(epoch).arg(&owner.0.to_be_bytes()[..]).arg(packed.into_bytes());
        });
        answer.await.map(drop)
    }

    pub(super) async fn open(&self, sale: &SaleId, epoch: u64) -> Result<FlagState, LedgerError> {
        let answer = self.sale_call(&scripts::OPEN, sale, KeySet::Books, |call| {
            call.arg(epoch);
        });
        flag_answer(answer.await?)
    }

    pub(super) async fn forget(&self, sale: &SaleId) -> Result<(), LedgerError> {
        self.sale_call(&scripts::FORGET, sale, KeySet::All, |_| {}).await.map(drop)
    }

    pub(super) async fn adopt(&self, sale: &SaleId) -> Result<Option<u64>, LedgerError> {
        let mut answer = match self.sale_call(&scripts::ADOPT, sale, KeySet::All, |_| {}).await {
            Err(LedgerError::UnknownSale(_)) => return Ok(None),
            answer => answer?,
        };
        Ok(if answer.number::<u8>()? == 1 { Some(answer.number()?) } else { None })
    }

    /// Runs a step of one sale.
    fn keys(&self, sale: &SaleId) -> SaleKeys {
        SaleKeys::new(&self.inner.key_prefix, sale)
    }

    async fn sale_call(
        &self,
        script: &Script,
        sale: &SaleId,
        set: KeySet,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<Answer, LedgerError> {
        let turn = self.inner.links.turn().await?;
        self.step(script, sale, set, turn, arguments).await
    }

    /// Runs a step of one sale, which is told first on which server its caller believes to be, and for which deployment it calls.
    async fn step(
        &self,
        script: &Script,
        sale: &SaleId,
        set: KeySet,
        turn: Turn<'_>,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<Answer, LedgerError> {
        let keys = self.keys(sale);
        let mut call = evalsha(script, keys.of(set));
        call.arg(turn.link.identity.as_str()).arg(&self.inner.deployment);
        arguments(&mut call);
        let mut answer = Answer::new(turn.send(script, &call).await?)?;
        match answer.bytes()?.as_slice() {
            b"OK" => Ok(answer),
            b"UNKNOWN" => Err(LedgerError::UnknownSale(sale.clone())),
            b"AMNESIA" => Err(LedgerError::Amnesia),
            b"FOREIGN" => Err(LedgerError::Foreign { sale: sale.clone(), by: answer.word()?.into() }),
            b"CLOSED" => Err(LedgerError::Closed),
            b"OPEN" => Err(LedgerError::Open),
            b"EPOCH" => Err(LedgerError::WrongEpoch { current: answer.number()? }),
            b"LATE" => Err(LedgerError::DeadlinePassed),
            b"INVALID" => {
                Err(LedgerError::Invalid(format!("{}.lua: arguments that do not fit", script.name)))
            }
            other => Err(wire::strange(&Value::BulkString(other.to_vec()))),
        }
    }

    /// Runs a step that belongs to no sale.
    async fn call<'a>(
        &self,
        script: &Script,
        keys: impl ExactSizeIterator<Item = &'a str>,
        arguments: impl FnOnce(&mut Cmd),
    ) -> Result<Answer, LedgerError> {
        let turn = self.inner.links.turn().await?;
        let mut call = evalsha(script, keys);
        arguments(&mut call);
        let mut answer = Answer::new(turn.send(script, &call).await?)?;
        match answer.bytes()?.as_slice() {
            b"OK" => Ok(answer),
            other => Err(wire::strange(&Value::BulkString(other.to_vec()))),
        }
    }
}

fn evalsha<'a>(script: &Script, keys: impl ExactSizeIterator<Item = &'a str>) -> Cmd {
    let mut call = redis::cmd("EVALSHA");
    call.arg(&script.sha).arg(keys.len());
    for key in keys {
        call.arg(key);
    }
    call
}

fn begin_reserve<'a>(call: &'a mut Cmd, batch: &ReserveBatch) -> &'a mut Cmd {
    call.arg(batch.epoch)
        .arg(batch.deadline_ms)
        .arg(&batch.owner.0.to_be_bytes()[..])
        .arg(batch.terms_version)
}

/// Whether an id or a user stands there twice: the script then has to remember what it has done itself so far.
fn repeats(requests: &[ReserveRequest]) -> bool {
    fn has_twins<T: Ord>(mut all: Vec<T>) -> bool {
        all.sort_unstable();
        all.windows(2).any(|pair| pair[0] == pair[1])
    }
    has_twins(requests.iter().map(|request| request.order_id).collect())
        || has_twins(requests.iter().map(|request| request.user.as_str()).collect())
}

fn sale_arguments(call: &mut Cmd, version: &SaleVersion) {
    call.arg(version.version)
        .arg(version.total)
        .arg(version.starts_at_ms)
        .arg(version.ends_at_ms)
        .arg(version.per_user_limit)
        .arg(version.passes_per_unit)
        .arg(u8::from(version.paused))
        .arg(version.terms_version);
}

fn flag(epoch: u64, remaining: i64, counter: u64) -> FlagState {
    FlagState { sold_out: remaining <= 0, version: FlagVersion { epoch, counter } }
}

/// Epoch, remaining, flag counter.
fn flag_answer(mut answer: Answer) -> Result<FlagState, LedgerError> {
    Ok(flag(answer.number()?, answer.number()?, answer.number()?))
}

/// Reads an answer of `reserve.lua` or `reserve_one.lua`.
fn reserve_answer(batch: &ReserveBatch, mut answer: Answer) -> Result<ReserveAnswer, LedgerError> {
    let now_ms = answer.number()?;
    let sale_version = Some(answer.number()?);
    let flag = flag(batch.epoch, answer.number()?, answer.number()?);
    let letters = answer.bytes()?;
    if letters.len() != batch.requests.len() {
        return Err(wire::strange(&Value::BulkString(letters)));
    }
    let mut outcome = |(request, letter): (&ReserveRequest, u8)| {
        Ok(match letter {
            b'T' => ReserveOutcome::Pending {
                first: true,
                reservation: Reservation {
                    order_id: request.order_id,
                    sale: batch.sale.clone(),
                    user: request.user.clone(),
                    quantity: request.quantity,
                    metadata: request.metadata.clone(),
                    reserved_at_ms: now_ms,
                    sale_version,
                },
            },
            b'R' => {
                let (_, reservation) = wire::reservation(request.order_id, &batch.sale, &answer.bytes()?)?;
                ReserveOutcome::Pending { first: false, reservation }
            }
            b'C' => ReserveOutcome::Confirmed,
            b'U' => ReserveOutcome::PassUsed,
            b'V' => ReserveOutcome::TermsDiffer,
            b'Z' => ReserveOutcome::Paused,
            b'S' => ReserveOutcome::NotStarted,
            b'E' => ReserveOutcome::Ended,
            b'L' => ReserveOutcome::LimitReached { order_ids: wire::order_ids(&answer.bytes()?)? },
            b'N' => ReserveOutcome::NotEnough { remaining: answer.number()? },
            b'X' => ReserveOutcome::SoldOut,
            other => return Err(wire::strange(&Value::Int(i64::from(other)))),
        })
    };
    let outcomes = batch.requests.iter().zip(letters).map(&mut outcome).collect::<Result<_, _>>()?;
    Ok(ReserveAnswer { outcomes, flag, now_ms })
}

//! `floodgate_payments` and `floodgate_refunds`.

use stock::{OrderId, Timestamp};

use super::SqliteDatabase;
use crate::database::DatabaseError;
use crate::database::payments::{
    Asker, Capture, Captured, PaymentRow, RefundAsked, RefundHeard, RefundRow, RefundState, RefundTold,
};
use crate::journal::Author;

impl SqliteDatabase {
    pub(in crate::database) async fn capture(&self, _: Capture) -> Result<Captured, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn join_unmatched(&self, _: usize) -> Result<usize, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn refund_unmatched(
        &self,
        _: u64,
        _: usize,
    ) -> Result<usize, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn refund_told(&self, _: RefundTold) -> Result<RefundHeard, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn refund(
        &self,
        _: OrderId,
        _: Asker,
        _: Option<u64>,
    ) -> Result<RefundAsked, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn refunds_due(&self, _: usize) -> Result<Vec<RefundRow>, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn refunds(
        &self,
        _: RefundState,
        _: String,
        _: usize,
    ) -> Result<Vec<RefundRow>, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn retry_refund(
        &self,
        _: String,
        _: Author,
    ) -> Result<Option<RefundRow>, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn payment(
        &self,
        _: String,
        _: String,
    ) -> Result<Option<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn payments_of(
        &self,
        _: OrderId,
    ) -> Result<Vec<(PaymentRow, Vec<RefundRow>)>, DatabaseError> {
        later()
    }

    pub(in crate::database) async fn clock(&self) -> Result<Timestamp, DatabaseError> {
        later()
    }
}

fn later<T>() -> Result<T, DatabaseError> {
    Err(DatabaseError::Unavailable("this part of the port follows".into()))
}

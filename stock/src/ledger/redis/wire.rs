//! How calls and answers look on the way to the scripts in `lua/redis/`: keys, MessagePack arguments, values of the hash of
//! orders. It sends nothing.

use redis::Value;

use super::super::{IdState, LedgerError};
use crate::{OrderId, Owner, Reservation, SaleId, UserId};

/// The keys of one sale, in the order in which every script names them. They share a hash tag.
#[derive(Debug, Clone)]
pub(super) struct SaleKeys {
    keys: [String; 7],
}

/// Which of [`SaleKeys`] a script takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeySet {
    Books,
    BooksAndOrders,
    All,
}

impl SaleKeys {
    pub(super) fn new(prefix: &str, sale: &SaleId) -> Self {
        Self::named(prefix, sale.as_str())
    }

    pub(super) fn named(prefix: &str, sale: &str) -> Self {
        let kinds = ["books", "orders", "mine", "pending", "fresh", "passes", "expiry"];
        Self { keys: kinds.map(|kind| format!("{{{prefix}:{sale}}}:{kind}")) }
    }

    pub(super) fn of(&self, set: KeySet) -> impl ExactSizeIterator<Item = &str> {
        let places: &[usize] = match set {
            KeySet::Books => &[0],
            KeySet::BooksAndOrders => &[0, 1],
            KeySet::All => &[0, 1, 2, 3, 4, 5, 6],
        };
        places.iter().map(|place| self.keys[*place].as_str())
    }
}

pub(super) fn leases_key(prefix: &str) -> String {
    format!("{{{prefix}}}:leases")
}

/// MessagePack, as `cmsgpack.unpack` reads it: only what the scripts need.
#[derive(Debug, Default)]
pub(super) struct Packed {
    bytes: Vec<u8>,
}

impl Packed {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Begins an array; its values follow. A call has at most 512 of anything, so 16 bits hold every length here.
    pub(super) fn array(&mut self, length: usize) {
        self.head(length, 0x90, 0xDC);
    }

    fn head(&mut self, length: usize, short: u8, long: u8) {
        debug_assert!(length <= usize::from(u16::MAX), "no call is that long");
        if length < 16 {
            self.bytes.push(short | length as u8);
        } else {
            self.bytes.push(long);
            self.bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }

    pub(super) fn text(&mut self, text: &[u8]) {
        match text.len() {
            length @ 0..32 => self.bytes.push(0xA0 | length as u8),
            length @ 32..256 => self.bytes.extend_from_slice(&[0xD9, length as u8]),
            length @ 256..65_536 => {
                self.bytes.push(0xDA);
                self.bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                self.bytes.push(0xDB);
                self.bytes.extend_from_slice(&(length as u32).to_be_bytes());
            }
        }
        self.bytes.extend_from_slice(text);
    }

    pub(super) fn number(&mut self, number: u32) {
        if number < 128 {
            self.bytes.push(number as u8);
        } else {
            self.bytes.push(0xCE);
            self.bytes.extend_from_slice(&number.to_be_bytes());
        }
    }

    pub(super) fn flag(&mut self, flag: bool) {
        self.bytes.push(if flag { 0xC3 } else { 0xC2 });
    }

    pub(super) fn ids(&mut self, ids: impl ExactSizeIterator<Item = OrderId>) {
        self.array(ids.len());
        ids.for_each(|id| self.text(&id.0.to_be_bytes()));
    }

    pub(super) fn users<'a>(&mut self, users: impl ExactSizeIterator<Item = &'a UserId>) {
        self.array(users.len());
        users.for_each(|user| self.text(user.as_str().as_bytes()));
    }

    pub(super) fn numbers(&mut self, numbers: impl ExactSizeIterator<Item = u32>) {
        self.array(numbers.len());
        numbers.for_each(|number| self.number(number));
    }

    /// A map from place, counted from 1, to text, of those that have one.
    pub(super) fn metadata<'a>(&mut self, texts: impl Iterator<Item = Option<&'a str>> + Clone) {
        self.head(texts.clone().flatten().count(), 0x80, 0xDE);
        for (place, text) in (1..).zip(texts) {
            if let Some(text) = text {
                self.number(place);
                self.text(text.as_bytes());
            }
        }
    }
}

/// An answer of a script, read from left to right.
pub(super) struct Answer {
    values: std::vec::IntoIter<Value>,
}

impl Answer {
    pub(super) fn new(value: Value) -> Result<Self, LedgerError> {
        match value {
            Value::Array(values) => Ok(Self { values: values.into_iter() }),
            other => Err(strange(&other)),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.values.as_slice().is_empty()
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, LedgerError> {
        match self.values.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            Some(other) => Err(strange(&other)),
            None => Err(strange(&Value::Nil)),
        }
    }

    pub(super) fn word(&mut self) -> Result<String, LedgerError> {
        String::from_utf8(self.bytes()?).map_err(|_| strange(&Value::Nil))
    }

    /// An integer, or a text that is one.
    pub(super) fn number<T: TryFrom<i64> + std::str::FromStr>(&mut self) -> Result<T, LedgerError> {
        let value = self.values.next().unwrap_or(Value::Nil);
        let number = match &value {
            Value::Int(number) => T::try_from(*number).ok(),
            Value::BulkString(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        number.ok_or_else(|| strange(&value))
    }
}

/// Carried out, but told in words that this version does not know: the caller has to ask again.
pub(super) fn strange(value: &Value) -> LedgerError {
    LedgerError::Uncertain(format!("the script's answer is not what this version expects, near {value:?}"))
}

/// One letter of `states.lua`.
pub(super) fn id_state(letter: u8) -> Result<IdState, LedgerError> {
    match letter {
        b'a' => Ok(IdState::Absent),
        b'p' => Ok(IdState::Pending),
        b'c' => Ok(IdState::Confirmed),
        b'r' => Ok(IdState::Released),
        other => Err(strange(&Value::Int(i64::from(other)))),
    }
}

/// Reads a pending value of the hash of orders: `p`, owner, `RESERVED_AT_MS:SALE_VERSION:QUANTITY:USER`, perhaps NUL and metadata.
pub(super) fn reservation(
    order_id: OrderId,
    sale: &SaleId,
    value: &[u8],
) -> Result<(Owner, Reservation), LedgerError> {
    read_reservation(order_id, sale, value).ok_or_else(|| strange(&Value::BulkString(value.to_vec())))
}

fn read_reservation(order_id: OrderId, sale: &SaleId, value: &[u8]) -> Option<(Owner, Reservation)> {
    let (owner, text) = value.strip_prefix(b"p")?.split_first_chunk::<8>()?;
    let text = std::str::from_utf8(text).ok()?;
    let (line, metadata) = match text.split_once('\0') {
        Some((line, metadata)) => (line, Some(metadata.into())),
        None => (text, None),
    };
    let (reserved_at_ms, line) = line.split_once(':')?;
    let (sale_version, line) = line.split_once(':')?;
    let (quantity, user) = line.split_once(':')?;
    let reservation = Reservation {
        order_id,
        sale: sale.clone(),
        user: user.parse().ok()?,
        quantity: quantity.parse().ok()?,
        metadata,
        reserved_at_ms: reserved_at_ms.parse().ok()?,
        // 0: of a record that names none.
        sale_version: Some(sale_version.parse().ok()?).filter(|version| *version != 0),
    };
    Some((Owner(u64::from_be_bytes(*owner)), reservation))
}

/// Reads a member of the sorted set of pending ids: the id and its owner.
pub(super) fn pending_member(member: &[u8]) -> Result<OrderId, LedgerError> {
    let (id, _owner) = member.split_at_checked(16).unwrap_or_default();
    order_id(id)
}

/// Reads what follows one another in a value of the hash `mine`.
pub(super) fn order_ids(bytes: &[u8]) -> Result<Vec<OrderId>, LedgerError> {
    bytes.chunks(16).map(order_id).collect()
}

pub(super) fn order_id(bytes: &[u8]) -> Result<OrderId, LedgerError> {
    let id: Result<[u8; 16], _> = bytes.try_into();
    id.map(|id| OrderId(u128::from_be_bytes(id))).map_err(|_| strange(&Value::BulkString(bytes.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_sale_share_one_hash_tag() {
        let keys = SaleKeys::new("fg", &"demo".parse().unwrap());
        let all: Vec<_> = keys.of(KeySet::All).collect();
        assert_eq!(all.len(), 7);
        assert!(all.iter().all(|key| key.starts_with("{fg:demo}:")), "{all:?}");
        assert_eq!(keys.of(KeySet::BooksAndOrders).collect::<Vec<_>>(), all[..2]);
    }

    #[test]
    fn values_of_orders_are_read() {
        let sale: SaleId = "demo".parse().unwrap();
        let (owner, found) =
            reservation(OrderId(7), &sale, b"p\0\0\0\0\0\0\0\x091700:5:2:a:b\0x\0:y").unwrap();
        assert_eq!(owner, Owner(9));
        assert_eq!((found.reserved_at_ms, found.quantity, found.user.as_str()), (1_700, 2, "a:b"));
        assert_eq!((found.metadata.as_deref(), found.sale_version), (Some("x\0:y"), Some(5)));
        for broken in
            [&b""[..], b"r", b"p1", b"p\0\0\0\0\0\0\0\x091700:0:2", b"p\0\0\0\0\0\0\0\x091700:0:x:a"]
        {
            assert!(matches!(reservation(OrderId(7), &sale, broken), Err(LedgerError::Uncertain(_))));
        }
    }

    #[test]
    fn lengths_are_packed_as_messagepack_wants_them() {
        let packed = |length: usize| {
            let mut packed = Packed::default();
            packed.text(&vec![b'x'; length]);
            packed.into_bytes()[..3].to_vec()
        };
        assert_eq!(packed(31)[0], 0xBF);
        assert_eq!(packed(32)[..2], [0xD9, 32]);
        assert_eq!(packed(1_024), [0xDA, 4, 0]);
        let mut array = Packed::default();
        array.numbers([1, 128].into_iter());
        array.metadata([None, Some("a")].into_iter());
        assert_eq!(array.into_bytes(), [0x92, 1, 0xCE, 0, 0, 0, 128, 0x81, 2, 0xA1, b'a']);
    }
}

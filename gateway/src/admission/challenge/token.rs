//! The bytes of a question: what is asked, of whom and until when, under a MAC. Every field under the MAC has its length before
//! it, so no two questions share one input.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use stock::{SaleId, UserId};

/// A key derived for one purpose.
pub(super) type Key = [u8; 32];

const VERSION: u8 = 1;
/// 128 bits of HMAC-SHA-256.
const MAC_BYTES: usize = 16;
const KIND_PICTURE: u8 = 1;
const KIND_WORK: u8 = 2;
/// A token of ours is shorter: longer ones are not even decoded.
const TEXT_MAX: usize = 512;
/// Length of a key's id in a token; configured ids are cut to it.
const KEY_ID_MAX: usize = 64;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// The picture with this serial number.
    Picture { serial: u64 },
    /// So many zero bits.
    Work { bits: u8 },
}

/// A question whose MAC was right.
pub(super) struct Opened<'k> {
    pub(super) question: Question,
    pub(super) nonce: [u8; 16],
    pub(super) expires_at_ms: u64,
    /// Of the secret under which the question was asked.
    pub(super) answer_key: &'k Key,
}

/// A token taken apart, its MAC not yet checked.
struct Sealed<'k, 'b> {
    key: &'k KeySet,
    /// What the MAC covers.
    body: &'b [u8],
    /// The part of `body` after the key's id.
    fields: &'b [u8],
    tag: &'b [u8],
}

struct KeySet {
    id: Vec<u8>,
    token: Key,
    picture: Key,
    answer: Key,
}

/// The live keys; the first one signs.
pub(super) struct Keys(Vec<KeySet>);

/// HMAC-SHA-256 over the parts, each with its length before it.
pub(super) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = keyed(key);
    update(&mut mac, parts);
    mac.finalize().into_bytes().into()
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    }
}

fn update(mac: &mut Hmac<Sha256>, parts: &[&[u8]]) {
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
}

fn right(key: &Key, parts: &[&[u8]], tag: &[u8]) -> bool {
    let mut mac = keyed(key);
    update(&mut mac, parts);
    tag.len() == MAC_BYTES && mac.verify_truncated_left(tag).is_ok()
}

impl Keys {
    pub(super) fn derive(secrets: &[(String, Vec<u8>)]) -> Self {
        let set = |(id, secret): &(String, Vec<u8>)| KeySet {
            id: id.as_bytes()[..id.len().min(KEY_ID_MAX)].to_vec(),
            token: mac(secret, &[b"floodgate challenge token 1"]),
            picture: mac(secret, &[b"floodgate challenge picture 1"]),
            answer: mac(secret, &[b"floodgate challenge answer 1"]),
        };
        Self(secrets.iter().map(set).collect())
    }

    /// From which the pool's answers follow.
    pub(super) fn answer_key(&self) -> &Key {
        &self.0[0].answer
    }

    /// The token of a question asked of `user` for `sale`.
    pub(super) fn seal(
        &self,
        question: &Question,
        nonce: &[u8; 16],
        expires_at_ms: u64,
        sale: &SaleId,
        user: &UserId,
    ) -> String {
        let key = &self.0[0];
        let (kind, value) = match *question {
            Question::Picture { serial } => (KIND_PICTURE, serial),
            Question::Work { bits } => (KIND_WORK, u64::from(bits)),
        };
        let mut body = head(&key.id);
        body.push(kind);
        body.extend_from_slice(nonce);
        body.extend_from_slice(&value.to_be_bytes());
        body.extend_from_slice(&expires_at_ms.to_be_bytes());
        let tag = mac(&key.token, &[&body, sale.as_str().as_bytes(), user.as_str().as_bytes()]);
        body.extend_from_slice(&tag[..MAC_BYTES]);
        URL_SAFE_NO_PAD.encode(body)
    }

    /// `None` unless it was asked of this user for this sale under a live key.
    pub(super) fn open(&self, text: &str, sale: &SaleId, user: &UserId) -> Option<Opened<'_>> {
        let bytes = decode(text)?;
        let Sealed { key, body, fields, tag } = self.split(&bytes)?;
        if !right(&key.token, &[body, sale.as_str().as_bytes(), user.as_str().as_bytes()], tag) {
            return None;
        }
        let (&kind, fields) = fields.split_first()?;
        let (nonce, fields) = fields.split_first_chunk::<16>()?;
        let (value, fields) = fields.split_first_chunk::<8>()?;
        let (expires, fields) = fields.split_first_chunk::<8>()?;
        let value = u64::from_be_bytes(*value);
        let question = match kind {
            KIND_PICTURE => Question::Picture { serial: value },
            KIND_WORK => Question::Work { bits: u8::try_from(value).ok()? },
            _ => return None,
        };
        fields.is_empty().then_some(Opened {
            question,
            nonce: *nonce,
            expires_at_ms: u64::from_be_bytes(*expires),
            answer_key: &key.answer,
        })
    }

    /// The path segment under which a picture is served: its serial under a MAC, so that nobody can walk through the pool.
    pub(super) fn picture(&self, serial: u64) -> String {
        let key = &self.0[0];
        let mut body = head(&key.id);
        body.extend_from_slice(&serial.to_be_bytes());
        let tag = mac(&key.picture, &[&body]);
        body.extend_from_slice(&tag[..MAC_BYTES]);
        URL_SAFE_NO_PAD.encode(body)
    }

    /// The serial of a picture's path segment. Only the signing key's pictures are in the pool.
    pub(super) fn open_picture(&self, text: &str) -> Option<u64> {
        let bytes = decode(text)?;
        let Sealed { key, body, fields, tag } = self.split(&bytes)?;
        let serial: [u8; 8] = fields.try_into().ok()?;
        let of_the_pool = std::ptr::eq(key, &self.0[0]) && right(&key.picture, &[body], tag);
        of_the_pool.then(|| u64::from_be_bytes(serial))
    }

    fn split<'k, 'b>(&'k self, bytes: &'b [u8]) -> Option<Sealed<'k, 'b>> {
        let (body, tag) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        let (&[version, id_length], rest) = body.split_first_chunk::<2>()?;
        let (id, fields) = rest.split_at_checked(usize::from(id_length))?;
        let key = self.0.iter().find(|key| version == VERSION && key.id == id)?;
        Some(Sealed { key, body, fields, tag })
    }
}

fn head(id: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    // An id is at most KEY_ID_MAX bytes long.
    body.extend_from_slice(&[VERSION, id.len() as u8]);
    body.extend_from_slice(id);
    body
}

fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > TEXT_MAX {
        return None;
    }
    URL_SAFE_NO_PAD.decode(text).ok()
}

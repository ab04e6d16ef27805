//! RSA public keys as providers hand them out: PEM, a certificate, or the bare base64 between. Reads texts; never files, and never a
//! private key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

/// The object identifier of rsaEncryption (RFC 8017).
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// Shortest modulus, bytes: what `ring` verifies, and what both providers give out.
const MODULUS_BYTES_MIN: usize = 256;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT: u8 = 0x06;
const VERSION: u8 = 0xa0;

/// A key that checks signatures by RSA PKCS#1 v1.5 with SHA-256.
#[derive(Debug)]
pub(super) struct PublicKey(UnparsedPublicKey<Vec<u8>>);

impl PublicKey {
    /// # Errors
    /// What is wrong, as the end of a sentence that names the key.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.contains("PRIVATE KEY") {
            return Err(
                "holds a private key: it wants the provider's public key, and this one should be made anew",
            );
        }
        let is_certificate = text.contains("BEGIN CERTIFICATE");
        // Of a chain the first certificate counts.
        let body = text.split("-----END").next().unwrap_or_default();
        let body = body.rsplit("-----").next().unwrap_or_default();
        let encoded: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        let der = STANDARD.decode(encoded).map_err(|_| "is no PEM file and no base64")?;
        let key = if is_certificate { of_certificate(&der) } else { of_key(&der) };
        key.map(|key| Self(UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.to_vec())))
            .ok_or("holds no RSA public key of 2048 bits or more")
    }

    /// Whether `signature` is this key's over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.verify(message, signature).is_ok()
    }
}

/// The content of the element that `input` begins with, if it has this tag; `input` goes on behind it.
fn element<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&first, rest) = input.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = match short {
        0..=0x7f => (usize::from(short), rest),
        0x81 => rest.split_first().map(|(&a, rest)| (usize::from(a), rest))?,
        0x82 => rest.split_first_chunk::<2>().map(|(&l, rest)| (usize::from(u16::from_be_bytes(l)), rest))?,
        // No key and no certificate is as long as that.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length).filter(|_| first == tag)?;
    *input = rest;
    Some(content)
}

/// RFC 5280: the subject's key is the seventh part of what is signed in a certificate, behind a version that may be left out.
fn of_certificate(mut der: &[u8]) -> Option<&[u8]> {
    let mut certificate = element(&mut der, SEQUENCE)?;
    let mut signed = element(&mut certificate, SEQUENCE)?;
    let _ = element(&mut signed, VERSION);
    element(&mut signed, INTEGER)?;
    for _algorithm_issuer_validity_subject in 0..4 {
        element(&mut signed, SEQUENCE)?;
    }
    of_key(signed)
}

/// The PKCS#1 key within a SubjectPublicKeyInfo.
fn of_key(mut der: &[u8]) -> Option<&[u8]> {
    let mut info = element(&mut der, SEQUENCE)?;
    let mut algorithm = element(&mut info, SEQUENCE)?;
    element(&mut algorithm, OBJECT).filter(|object| *object == RSA)?;
    let (_, key) =
        element(&mut info, BIT_STRING)?.split_first().filter(|(unused_bits, _)| **unused_bits == 0)?;
    let mut numbers = element(&mut &*key, SEQUENCE)?;
    let modulus = element(&mut numbers, INTEGER)?;
    (modulus.len() >= MODULUS_BYTES_MIN).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = include_str!("../../../tests/payments/keys/alipay-cert.pub.pem");
    const CERTIFICATE: &str = include_str!("../../../tests/payments/keys/alipay-cert.cert.pem");

    #[test]
    fn a_key_a_certificate_and_bare_base64_are_one_key() {
        let parse = |text: &str| PublicKey::parse(text).map(|key| key.0.as_ref().to_vec());
        let bare: String = PEM.lines().filter(|line| !line.starts_with("---")).collect();
        let key = parse(PEM);
        assert!(key.is_ok());
        assert_eq!(parse(CERTIFICATE), key);
        assert_eq!(parse(&bare), key);
        assert_eq!(parse(&format!("\n{PEM}\n{PEM}")), key);
        for cut in 0..bare.len() {
            assert!(PublicKey::parse(&bare[..cut]).is_err(), "{cut}");
        }
        for wrong in ["", "-----", "hello", "-----BEGIN RSA PRIVATE KEY-----\nAAAA"] {
            assert!(PublicKey::parse(wrong).is_err(), "{wrong}");
        }
    }
}

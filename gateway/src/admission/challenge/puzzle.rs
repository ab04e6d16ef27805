//! Proof of work: hashcash over SHA-256. Stateless; the prefix is the question's nonce.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Beyond it a phone would work for days.
pub(super) const BITS_MAX: u8 = 40;

/// What the number is hashed with: the nonce in hexadecimal.
pub(super) fn prefix(nonce: &[u8; 16]) -> String {
    nonce.iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether `answer` is decimal, at most 20 digits long, and solves the puzzle.
pub(super) fn solves(nonce: &[u8; 16], answer: &str, bits: u8) -> bool {
    if answer.is_empty() || answer.len() > 20 || !answer.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let digest = Sha256::new().chain_update(prefix(nonce)).chain_update(b":").chain_update(answer).finalize();
    zero_bits(&digest) >= u32::from(bits)
}

fn zero_bits(digest: &[u8]) -> u32 {
    let zero_bytes = digest.iter().take_while(|&&byte| byte == 0).count();
    let rest = digest.get(zero_bytes).map_or(0, |byte| byte.leading_zeros());
    zero_bytes as u32 * 8 + rest
}

#[cfg(test)]
mod tests {
    use super::{prefix, solves, zero_bits};

    #[test]
    fn zero_bits_count_from_the_first_byte_s_highest_bit() {
        assert_eq!(zero_bits(&[0x80]), 0);
        assert_eq!(zero_bits(&[0x01, 0xFF]), 7);
        assert_eq!(zero_bits(&[0, 0x3F]), 10);
        assert_eq!(zero_bits(&[0, 0, 0]), 24);
    }

    #[test]
    fn only_decimal_numbers_solve() {
        let nonce = [7; 16];
        assert_eq!(prefix(&nonce), "07".repeat(16));
        assert!(solves(&nonce, "0", 0));
        for answer in ["", "-1", "+1", "1e3", " 1", "１", "123456789012345678901"] {
            assert!(!solves(&nonce, answer, 0), "{answer:?}");
        }
    }
}

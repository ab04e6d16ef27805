//! What stands in a sale's znode: one line of text, so that an operator can read it with any client.
//!
//! `1 EPOCH COUNTER sold-out` or `1 EPOCH COUNTER open`. The first word is the encoding's version; further words are
//! ignored, so that a later version of this crate may add some and still be read.

use crate::{FlagState, FlagVersion};

const ENCODING: &str = "1";
const SOLD_OUT: &str = "sold-out";
const OPEN: &str = "open";

/// The line.
pub(super) fn encode(state: FlagState) -> Vec<u8> {
    let FlagState { sold_out, version: FlagVersion { epoch, counter } } = state;
    let word = if sold_out { SOLD_OUT } else { OPEN };
    format!("{ENCODING} {epoch} {counter} {word}").into_bytes()
}

/// The state; none if this crate cannot read it. Such a znode is another version's: it is never written over.
pub(super) fn decode(data: &[u8]) -> Option<FlagState> {
    let mut words = std::str::from_utf8(data).ok()?.split_ascii_whitespace();
    if words.next()? != ENCODING {
        return None;
    }
    let version = FlagVersion { epoch: words.next()?.parse().ok()?, counter: words.next()?.parse().ok()? };
    let sold_out = match words.next()? {
        SOLD_OUT => true,
        OPEN => false,
        _ => return None,
    };
    Some(FlagState { sold_out, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sold_out: bool, epoch: u64, counter: u64) -> FlagState {
        FlagState { sold_out, version: FlagVersion { epoch, counter } }
    }

    #[test]
    fn what_was_written_by_version_1_is_read() {
        assert_eq!(decode(b"1 3 17 sold-out"), Some(state(true, 3, 17)));
        assert_eq!(decode(b"1 3 18 open"), Some(state(false, 3, 18)));
        assert_eq!(decode(b"1 3 18 open by=gateway-2\n"), Some(state(false, 3, 18)));
    }

    #[test]
    fn what_is_written_is_read() {
        for state in [state(true, 0, 0), state(false, u64::MAX, u64::MAX), state(true, 1, u64::MAX)] {
            assert_eq!(decode(&encode(state)), Some(state));
        }
    }

    #[test]
    fn what_is_not_understood_is_no_state() {
        let foreign: [&[u8]; 9] = [
            b"",
            b"1",
            b"1 3",
            b"1 3 17",
            b"1 3 17 maybe",
            b"2 3 17 open",
            b"1 -3 17 open",
            b"1 3 x open",
            b"\xff\xfe",
        ];
        for data in foreign {
            assert_eq!(decode(data), None, "{data:?}");
        }
    }
}

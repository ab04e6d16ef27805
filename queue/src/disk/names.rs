//! Which names topics and groups may have.

use crate::port::QueueError;

/// Names of topics and groups become directories.
pub(crate) fn valid_name(name: &str) -> Result<(), QueueError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !matches!(name, "lock" | "floodgate-queue");
    if valid { Ok(()) } else { Err(QueueError::InvalidName(name.to_owned())) }
}

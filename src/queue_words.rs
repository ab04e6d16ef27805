//! What to do about a log that cannot be used, in one sentence: the same for a start, for `queue verify` and for every command
//! that reads the log.

use std::path::Path;

use queue::QueueError;

/// Lies in the directory of every queue.
const IDENTITY: &str = "floodgate-queue";

/// The error, and the way out.
pub(crate) fn queue_words(error: &QueueError) -> String {
    match error {
        QueueError::Corrupt { file, offset, found } => {
            let directory = file.ancestors().find(|path| path.join(IDENTITY).exists()).unwrap_or(file);
            format!("{} is damaged at byte {offset}: {found}. {}", file.display(), way_out(directory))
        }
        QueueError::Io { .. } => {
            format!(
                "{error}; queue.directory must be a directory that this user may write, on a disk with room"
            )
        }
        error => error.to_string(),
    }
}

/// What to keep, what is at risk, and how to go on without a damaged log.
pub(crate) fn way_out(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "Stop floodgate, keep a copy of {directory} and look at its disk. At risk are the orders promised in it that are not rows \
         yet. To go on without it: move {directory} away and start; that start stops, and `floodgate ledger instances` names the \
         log that it awaits; `floodgate ledger rebuild --without ID` leaves that log out and says how many orders that may lose"
    )
}

//! What the process says on standard error. Best effort: it never panics, never ends the process and never holds up a thread
//! that writes a line, whatever became of the disk or the reader behind it. Lines that could not be written are counted.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::Level;

/// Lines that may wait for a slow reader; further ones are lost.
const WAITING_LINES_MAX: usize = 1_024;
/// Longest wait for a slow reader at the process's end.
const END_MAX: Duration = Duration::from_secs(1);

static LOST: LazyLock<Counter> = LazyLock::new(Counter::default);
/// Whether the last line was lost. A lone fact that guards nothing else: relaxed serves everywhere.
static LOSING: AtomicBool = AtomicBool::new(false);

enum Word {
    Line(Vec<u8>),
    /// Everything before has been tried once this is answered.
    End(SyncSender<()>),
}

/// The log of a server.
pub(crate) struct Log {
    words: SyncSender<Word>,
    json: bool,
}

/// The writing end that the subscriber uses.
struct Lines(SyncSender<Word>);

/// Says one sentence of a command. It waits for its reader, as a server must not.
pub(crate) fn say(text: impl std::fmt::Display) {
    note_outcome(&write_line(&mut io::stderr().lock(), format!("floodgate: {text}\n").as_bytes()));
}

/// Whether the last line could not be written.
pub(crate) fn loses_lines() -> bool {
    LOSING.load(Ordering::Relaxed)
}

/// Shows how many lines were lost.
pub(crate) fn register(registry: &mut Registry) {
    registry.register("floodgate_log_lines_lost", "Lines of the log that could not be written", LOST.clone());
}

impl Log {
    /// One line an event from now on, no more than `FLOODGATE_LOG` lets through, in the form that `FLOODGATE_LOG_FORMAT` says.
    ///
    /// # Errors
    /// The sentence about a variable that says neither.
    pub(crate) fn start() -> Result<Self, String> {
        let level = level(std::env::var("FLOODGATE_LOG").ok().as_deref())?;
        let json = is_json(std::env::var("FLOODGATE_LOG_FORMAT").ok().as_deref())?;
        let (sender, words) = mpsc::sync_channel(WAITING_LINES_MAX);
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&words))
            .map_err(|e| format!("the log's thread did not start: {e}"))?;
        let lines = Lines(sender.clone());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(io::stderr().is_terminal())
            // Its own complaint would be a macro that panics.
            .log_internal_errors(false)
            .with_writer(move || Lines(lines.0.clone()));
        if json {
            subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        } else {
            subscriber.init();
        }
        Ok(Self { words: sender, json })
    }

    /// The server's last sentence, if there is one; then the lines that wait get their time, but not for ever.
    pub(crate) fn end(self, last: Option<&str>) {
        match last {
            Some(last) if self.json => tracing::error!("{last}"),
            Some(last) => queue(&self.words, format!("floodgate: {last}\n").into_bytes()),
            None => {}
        }
        let (ended, end) = mpsc::sync_channel(1);
        // A full queue is one that nobody empties.
        if self.words.try_send(Word::End(ended)).is_ok() {
            let _ = end.recv_timeout(END_MAX);
        }
    }
}

/// Never fails: a failure would be answered by the subscriber, which has nowhere else to say it.
impl Write for Lines {
    /// The subscriber hands over one whole line a call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        queue(&self.0, line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Never waits: a reader that hangs must not hold up a purchase.
fn queue(words: &SyncSender<Word>, line: Vec<u8>) {
    if words.try_send(Word::Line(line)).is_err() {
        lost();
    }
}

/// The thread `log`.
fn write_all(words: &Receiver<Word>) {
    let mut is_torn = false;
    for word in words {
        match word {
            Word::Line(line) => {
                let mut out = io::stderr().lock();
                // What a full disk took of the last line must not swallow this one.
                let begun = if is_torn { write_line(&mut out, b"\n") } else { Ok(()) };
                let outcome = begun.and_then(|()| write_line(&mut out, &line));
                is_torn = outcome.is_err();
                note_outcome(&outcome);
            }
            // Nobody waits any more: the process is ending without.
            Word::End(ended) => _ = ended.try_send(()),
        }
    }
}

fn write_line(out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    out.write_all(line).and_then(|()| out.flush())
}

fn note_outcome(outcome: &io::Result<()>) {
    match outcome {
        Ok(()) => LOSING.store(false, Ordering::Relaxed),
        Err(_) => lost(),
    }
}

fn lost() {
    LOST.inc();
    LOSING.store(true, Ordering::Relaxed);
}

fn level(word: Option<&str>) -> Result<Level, String> {
    match word {
        None | Some("") => Ok(Level::INFO),
        Some(word) => word
            .parse()
            .map_err(|_| format!("FLOODGATE_LOG: {word:?} is none of error, warn, info, debug, trace")),
    }
}

fn is_json(word: Option<&str>) -> Result<bool, String> {
    match word {
        None | Some("" | "text") => Ok(false),
        Some("json") => Ok(true),
        Some(word) => Err(format!("FLOODGATE_LOG_FORMAT: {word:?} is neither text nor json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_known_or_named() {
        assert_eq!(level(None), Ok(Level::INFO));
        assert_eq!(level(Some("warn")), Ok(Level::WARN));
        assert!(level(Some("loud")).is_err_and(|e| e.contains("FLOODGATE_LOG: \"loud\"")));
        assert_eq!((is_json(None), is_json(Some("json"))), (Ok(false), Ok(true)));
        assert!(is_json(Some("xml")).is_err_and(|e| e.contains("FLOODGATE_LOG_FORMAT: \"xml\"")));
    }
}

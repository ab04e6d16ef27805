//! Control of one child process and what `/proc` tells of it. Signals go to that process id and to nothing else.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

/// `USER_HZ`: fixed at 100 on every Linux architecture that matters here.
const TICKS_PER_S: f64 = 100.0;
const PAGE_BYTES: u64 = 4096;

/// A child that is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    id: u32,
}

impl Process {
    /// Starts `program` in `directory`; both its outputs are appended to `log`.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&str],
        directory: &Path,
        log: &Path,
    ) -> std::io::Result<Self> {
        let output = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        // The child is configured by its file alone, whatever the caller's shell exports.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FLOODGATE_"))
        {
            command.env_remove(name);
        }
        let child = command
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()?;
        let id = child.id().ok_or_else(|| std::io::Error::other("the child has ended already"))?;
        Ok(Self { child, id })
    }

    /// The status, once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) async fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// SIGTERM, and waits at most `within` for the end; then SIGKILL and `None`.
    pub(crate) async fn terminate(&mut self, within: Duration) -> std::io::Result<Option<ExitStatus>> {
        // The shell's built-in: a bare machine may lack the program `kill`.
        let command = format!("kill -TERM {}", self.id);
        let sent = Command::new("sh").args(["-c", &command]).status().await?;
        if !sent.success() {
            return Err(std::io::Error::other(format!("{command}: {sent}")));
        }
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status.map(Some),
            Err(_) => self.child.kill().await.map(|()| None),
        }
    }

    /// CPU time used so far (user and system, all threads), in seconds.
    pub(crate) fn cpu_s(&self) -> Option<f64> {
        cpu_s(&std::fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?)
    }

    /// Resident memory now, in bytes.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(&std::fs::read_to_string(format!("/proc/{}/statm", self.id)).ok()?)
    }
}

fn cpu_s(stat: &str) -> Option<f64> {
    // The second field, the name, may hold blanks and brackets: count from the last one. utime and stime are fields 14 and 15.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

fn resident_bytes(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_name_with_blanks_and_brackets() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 1 0 5 1 2 3";
        assert_eq!(cpu_s(stat), Some(4.0));
        assert_eq!(cpu_s("broken"), None);
        assert_eq!(resident_bytes("100 25 3 1 0 5 0"), Some(25 * 4096));
    }

    async fn said(log: &Path, word: &str) {
        for _ in 0..6_000 {
            if std::fs::read_to_string(log).expect("log").contains(word) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_child_is_measured_terminated_and_killed() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("log");
        let shell = Path::new("/bin/sh");
        let mut polite = Process::start(shell, &["-c", "echo hello; exec sleep 60"], directory.path(), &log)
            .expect("start");
        assert!(polite.cpu_s().is_some() && polite.resident_bytes().is_some());
        assert!(polite.ended().is_none());
        said(&log, "hello").await;
        let status = polite.terminate(Duration::from_secs(60)).await.expect("terminate").expect("in time");
        assert!(!status.success(), "sleep dies of SIGTERM");
        assert_eq!(std::fs::read_to_string(&log).expect("log"), "hello\n");

        let stubborn = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let mut stubborn = Process::start(shell, &["-c", stubborn], directory.path(), &log).expect("start");
        said(&log, "ready").await;
        assert_eq!(stubborn.terminate(Duration::from_millis(200)).await.expect("terminate"), None);
        assert!(stubborn.ended().is_some());
    }
}

//! One server process: started in a group of its own, waited for until it answers, killed, stopped, frozen. Every handle of a
//! server derefs to its process. It never knows which server it is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::{Error, scratch};

/// How long a server may take to answer, on a machine that is busy with other things.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// How long a server may take to end by itself.
const STOPPED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Says its group to the watchdog, then becomes the server (the same process, the same group) with the log as its output.
const BECOME: &str = r#"echo "started $$"; exec "$@" >&2"#;

/// What to run.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// For error messages.
    pub name: String,
    /// Looked up in PATH and in the system's own directories.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Added to this process's own environment.
    pub environment: BTreeMap<String, String>,
    /// Where it runs; must exist.
    pub directory: PathBuf,
    /// Where its output goes, appended.
    pub log: PathBuf,
}

/// A process that ends with its handle, and may be started again as often as one likes.
pub struct Process {
    options: ProcessOptions,
    ready: Box<dyn Fn() -> bool + Send + Sync>,
    later: Mutex<BTreeMap<String, String>>,
    child: Mutex<Option<Child>>,
    pid: AtomicU32,
}

impl Process {
    /// Nothing runs yet. `ready` asks it whether it serves, and is asked again and again.
    pub fn new(options: ProcessOptions, ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            options,
            ready: Box::new(ready),
            later: Mutex::default(),
            child: Mutex::new(None),
            pid: AtomicU32::new(0),
        }
    }

    /// Starts it and waits until it serves. It must not be running.
    pub fn start(&self) -> Result<(), Error> {
        self.spawn()?;
        self.wait_until_ready()
    }

    /// Starts it again with the same data and ports, and waits until it serves; stops it first if it runs.
    pub fn restart(&self) -> Result<(), Error> {
        self.stop()?;
        self.start()
    }

    /// Waits until it serves.
    pub fn wait_until_ready(&self) -> Result<(), Error> {
        self.wait_until("is ready", READY_WITHIN, &self.ready)
    }

    /// Whether it serves now.
    pub fn is_ready(&self) -> bool {
        (self.ready)()
    }

    /// Starts it without waiting for anything.
    pub fn spawn(&self) -> Result<(), Error> {
        let mut child = self.child();
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Err(Error::new(format!("{} is running already", self.options.name)));
        }
        if let Some(old) = child.take() {
            self.reap(old);
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.options.log)
            .map_err(|error| Error::io(self.options.log.display(), &error))?;
        let spawned = Command::new("sh")
            .args(["-c", BECOME, "testbed"])
            .arg(&self.options.program)
            .args(&self.options.arguments)
            .envs(&self.options.environment)
            .envs(&*self.later.lock().unwrap_or_else(PoisonError::into_inner))
            .current_dir(&self.options.directory)
            .stdin(Stdio::null())
            .stdout(scratch::watchdog_input()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| Error::io(format!("cannot start {}", self.options.name), &error))?;
        self.pid.store(spawned.id(), Ordering::Relaxed);
        *child = Some(spawned);
        Ok(())
    }

    /// Waits until `done`, as long as the process runs; `what` completes "no sign that it …".
    pub fn wait_until(
        &self,
        what: &str,
        within: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        loop {
            let answered = done();
            // Asked afterwards: whoever answered at this port was not ours if ours has ended.
            if let Some(status) = self.exited()? {
                return Err(Error::with_log(
                    format!("{} ended ({status})", self.options.name),
                    &self.options.log,
                ));
            }
            if answered {
                return Ok(());
            }
            if Instant::now() > deadline {
                let text = format!("{}: no sign after {within:?} that it {what}", self.options.name);
                return Err(Error::with_log(text, &self.options.log));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Result<Option<String>, Error> {
        let mut child = self.child();
        let Some(child) = child.as_mut() else { return Ok(Some("it was not running".into())) };
        let status = child.try_wait().map_err(|error| Error::io(&self.options.name, &error))?;
        Ok(status.map(|status| status.to_string()))
    }

    /// Whether it runs (a frozen one does).
    pub fn is_running(&self) -> bool {
        matches!(self.exited(), Ok(None))
    }

    /// SIGKILL to the whole group, and waits until it is gone. Good if nothing runs.
    pub fn kill(&self) -> Result<(), Error> {
        let taken = self.child().take();
        if let Some(child) = taken {
            self.reap(child);
        }
        Ok(())
    }

    /// SIGTERM, and waits until it has ended by itself.
    pub fn stop(&self) -> Result<(), Error> {
        if !self.is_running() {
            return self.kill();
        }
        self.signal(Signal::TERM)?;
        // Else a frozen one would never hear it.
        match self.signal(Signal::CONT) {
            // It was faster.
            Err(_) if !self.is_running() => {}
            heard => heard?,
        }
        let deadline = Instant::now() + STOPPED_WITHIN;
        while self.is_running() {
            if Instant::now() > deadline {
                let text = format!("{} did not end within {STOPPED_WITHIN:?} of SIGTERM", self.options.name);
                self.kill()?;
                return Err(Error::with_log(text, &self.options.log));
            }
            thread::sleep(LOOK_EVERY);
        }
        self.kill()
    }

    /// SIGSTOP to the whole group, and waits until it stands still: connections stay open, nothing answers.
    pub fn freeze(&self) -> Result<(), Error> {
        self.signal(Signal::STOP)?;
        self.wait_until("stands still", STOPPED_WITHIN, || {
            self.statistics().iter().all(|process| process.state == 'T')
        })
    }

    /// SIGCONT: what was sent meanwhile is carried out now.
    pub fn thaw(&self) -> Result<(), Error> {
        self.signal(Signal::CONT)
    }

    /// Any signal, to the whole group.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        if !self.is_running() {
            return Err(Error::with_log(format!("{} is not running", self.options.name), &self.options.log));
        }
        let group = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let group = group.ok_or_else(|| Error::new(format!("{} has no process", self.options.name)))?;
        kill_process_group(group, signal).map_err(|error| Error::io(&self.options.name, &error.into()))
    }

    /// Of the server as started last; also the number of its process group.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Processor time of all processes in the group since they were started, in steps of the kernel's tick (10 ms).
    pub fn cpu(&self) -> Duration {
        let ticks: u64 = self.statistics().iter().map(|process| process.ticks).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.options.log).unwrap_or_default()).into_owned()
    }

    /// Of later starts.
    pub fn set_environment(&self, name: &str, value: &str) {
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        later.insert(name.to_owned(), value.to_owned());
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self, mut child: Child) {
        // The group, and before the wait: while the leader is not waited for, the number cannot be another's.
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.wait();
        scratch::group_ended(child.id());
    }

    fn statistics(&self) -> Vec<Statistics> {
        let group = self.pid();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()))
            .filter_map(|entry| Statistics::read(&entry.path()))
            .filter(|process| process.group == group)
            .collect()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (process {})", self.options.name, self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The fields of /proc/PID/stat that matter here.
struct Statistics {
    state: char,
    group: u32,
    ticks: u64,
}

impl Statistics {
    fn read(directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(directory.join("stat")).ok()?;
        // The second field is the program's name in brackets and may itself hold spaces and brackets.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
        })
    }
}

/// Where a program is. Servers often lie outside an ordinary user's PATH.
pub(crate) fn find(program: &str, package: &str) -> Result<PathBuf, Error> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::missing(program, package))
}

/// Runs a client to its end and gives what it printed. Bounded, since the server that it asks may be frozen.
pub(crate) fn run(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String, Error> {
    let output = Command::new("timeout")
        .args(["--kill-after=1", "60"])
        .arg(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io(program.display(), &error))?;
    let text = String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned();
    if output.status.success() {
        return Ok(text);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!(
        "{} {arguments:?}: {}: {text} {}",
        program.display(),
        output.status,
        words.trim()
    )))
}

//! The real binary in a directory of its own on free loopback ports, and a small blocking HTTP client for it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest wait for anything, on a machine that does many things besides.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything a test needs of one configuration: its directory and its two addresses.
pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) buyers: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A running process; killed when dropped.
pub(crate) struct Server {
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.body))
    }
}

/// Nobody else is given its port while this program runs, so that what is started again finds it free.
pub(crate) fn free_address() -> SocketAddr {
    let port = testbed::Port::claim().expect("a free port");
    let address = SocketAddr::from(([127, 0, 0, 1], port.number()));
    std::mem::forget(port);
    address
}

impl Site {
    /// Writes `floodgate.toml`: free ports, no question, the demo login, and `more`.
    pub(crate) fn new(more: &str) -> Self {
        let site = Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            buyers: free_address(),
            admin: free_address(),
        };
        site.configure(more);
        site
    }

    pub(crate) fn configure(&self, more: &str) {
        let toml = format!(
            "[gateway]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"\n[auth]\ndemo = true\n[gate]\nchallenge = \"off\"\nopens_before_s = 600\n{more}",
            self.buyers, self.admin
        );
        std::fs::write(self.directory.path().join("floodgate.toml"), toml).expect("writable");
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("data/orders.db")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate"));
        command.current_dir(self.path()).args(["--config", "floodgate.toml"]).args(arguments);
        command
    }

    /// Runs a command to its end; one that does not end by itself is killed and fails the test.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.expect("the binary starts");
        let id = child.id().to_string();
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            let late =
                end.recv_timeout(PATIENCE).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout);
            if late {
                let _ = Command::new("kill").args(["-KILL", &id]).status();
            }
            late
        });
        let output = child.wait_with_output().expect("a child of ours");
        drop(ended);
        assert!(!watchdog.join().expect("no panic"), "{arguments:?} did not end by itself");
        output
    }

    /// Starts the all-in-one and waits until it is ready.
    pub(crate) fn start(&self) -> Server {
        self.start_by(self.command(&[]))
    }

    /// The same in an environment of its own.
    pub(crate) fn start_under(&self, environment: Vec<(&'static str, String)>) -> Server {
        let mut command = self.command(&[]);
        command.envs(environment);
        self.start_by(command)
    }

    /// The same in a process that may open so many files and no more.
    pub(crate) fn start_with_files(&self, files: u32) -> Server {
        let floodgate = self.command(&[]);
        let mut limited = Command::new("sh");
        limited.current_dir(self.path()).args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
        limited.arg(floodgate.get_program()).args(floodgate.get_args());
        self.start_by(limited)
    }

    fn start_by(&self, command: Command) -> Server {
        std::fs::File::create(self.path().join("log")).expect("writable");
        let log = self.log_end();
        self.start_logging_to(command, log)
    }

    /// Two writers at one file's end.
    fn log_end(&self) -> Stdio {
        let log = std::fs::File::options().create(true).append(true).open(self.path().join("log"));
        log.expect("writable").into()
    }

    /// The same with a log that goes elsewhere.
    pub(crate) fn start_logging_to(&self, mut command: Command, stderr: Stdio) -> Server {
        command.stdin(Stdio::null()).stdout(self.log_end()).stderr(stderr);
        let child = command.spawn().expect("the binary starts");
        // It holds our end of a pipe open.
        drop(command);
        let mut server = Server { child };
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = server.child.try_wait().expect("a child of ours") {
                panic!("ended with {status}: {}", self.log());
            }
            if request(self.admin, "GET", "/readyz", &[], "").is_ok_and(|answer| answer.status == 200) {
                return server;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("not ready within {PATIENCE:?}: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        request(self.buyers, method, path, headers, body).expect("an answer")
    }

    pub(crate) fn admin_call(&self, method: &str, path: &str, body: &str) -> Answer {
        let token = std::fs::read_to_string(self.path().join("data/admin.token")).expect("made at the start");
        let bearer = format!("Bearer {}", token.trim());
        request(self.admin, method, path, &[("authorization", &bearer)], body).expect("an answer")
    }

    /// Logs `user` in and gets a pass for `sale`: (token, pass, order id).
    pub(crate) fn pass(&self, sale: &str, user: &str) -> (String, String, String) {
        let login = self.call("POST", "/api/v1/demo/login", &[], &format!("{{\"user\":\"{user}\"}}"));
        assert_eq!(login.status, 200, "{}", login.body);
        let token = login.json()["token"].as_str().expect("a token").to_owned();
        let bearer = format!("Bearer {token}");
        let pass =
            self.call("POST", &format!("/api/v1/sales/{sale}/passes"), &[("authorization", &bearer)], "{}");
        assert_eq!(pass.status, 201, "{}", pass.body);
        let pass = pass.json();
        let text = |name: &str| pass[name].as_str().unwrap_or_else(|| panic!("{name} in {pass}")).to_owned();
        (token, text("pass"), text("order_id"))
    }

    /// Presses the button until the answer is a yes or a no: where the machine is busy enough, any attempt may end as `busy`
    /// or `uncertain`, and the same pass again is what a buyer does then.
    pub(crate) fn press(&self, sale: &str, pass: &str, body: &str) -> Answer {
        let path = format!("/api/v1/sales/{sale}/orders");
        let press = || self.call("POST", &path, &[("floodgate-pass", pass)], body);
        self.wait_for("answer", press, |answer| answer.status != 503)
    }

    /// Asks until `good` likes the answer; the last answer otherwise fails the test.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        mut ask: impl FnMut() -> Answer,
        good: impl Fn(&Answer) -> bool,
    ) -> Answer {
        let began = Instant::now();
        loop {
            let answer = ask();
            if good(&answer) {
                return answer;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "no {what}; last: {} {}\n{}",
                answer.status,
                answer.body,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Server {
    /// Sends a signal, named as `kill` takes it: `-TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill");
        assert!(status.success());
    }

    /// Waits for the process's own end.
    pub(crate) fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().expect("a child of ours")
    }
}

/// One request on a connection of its own.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Ok(Answer { status, body })
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

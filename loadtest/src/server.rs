//! An all-in-one of the load tester's own: built, configured, started, killed and restarted in a directory of its own.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::api::{Listener, Operator, Shop};
use crate::http::Client;
use crate::process::Process;
use crate::random::Random;
use crate::terminal;
use crate::token::Signer;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// Beyond the server's own `shutdown_max_s`.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// How the all-in-one is configured, as far as a scenario cares.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) per_user_rps: u32,
    pub(crate) orders_per_second_max: u32,
    /// The `[[sale]]` to open with.
    pub(crate) sale: Option<SaleToOpen>,
}

/// A sale that the load tester publishes.
#[derive(Debug, Clone)]
pub(crate) struct SaleToOpen {
    pub(crate) id: String,
    pub(crate) units: u32,
    pub(crate) starts_at_ms: u64,
}

impl SaleToOpen {
    const HOUR_MS: u64 = 3_600_000;

    /// The body of `PUT /admin/v1/sales`.
    pub(crate) fn definition(&self) -> serde_json::Value {
        serde_json::json!({
            "id": self.id, "title": "load test", "price": 1990, "currency": "CNY", "total": self.units, "per_user_limit": 1,
            "starts_at": crate::clock::format_ms(self.starts_at_ms),
            "ends_at": crate::clock::format_ms(self.starts_at_ms + Self::HOUR_MS), "rehearsal": true,
        })
    }

    fn toml(&self) -> String {
        format!(
            "\n[[sale]]\nid = \"{}\"\ntitle = \"load test\"\nprice = 1990\ncurrency = \"CNY\"\ntotal = {}\nper_user_limit = 1\n\
             starts_at = \"{}\"\nends_at = \"{}\"\nrehearsal = true\n",
            self.id,
            self.units,
            crate::clock::format_ms(self.starts_at_ms),
            crate::clock::format_ms(self.starts_at_ms + Self::HOUR_MS),
        )
    }
}

/// The all-in-one, running or between two lives.
pub(crate) struct Server {
    program: PathBuf,
    directory: Directory,
    buyers_url: String,
    admin_url: String,
    secret: String,
    process: Option<Process>,
}

enum Directory {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Server {
    /// Writes the configuration, starts the program and waits until it is ready. With `keep`, the directory is that one and stays.
    pub(crate) async fn start(
        program: PathBuf,
        setting: &Setting,
        keep: Option<&Path>,
    ) -> Result<Self, Failure> {
        let directory = match keep {
            Some(path) => {
                std::fs::create_dir_all(path).map_err(|error| Failure::world(path.display(), error))?;
                if path.join("floodgate.toml").exists() {
                    return Err(Failure::Usage(format!(
                        "--keep {}: holds an earlier run; name a new directory",
                        path.display()
                    )));
                }
                // The server runs in this directory and its paths are written into its configuration.
                Directory::Kept(path.canonicalize().map_err(|error| Failure::world(path.display(), error))?)
            }
            None => Directory::Temporary(
                tempfile::Builder::new()
                    .prefix("floodgate-loadtest-")
                    .tempdir()
                    .map_err(|error| Failure::world("a temporary directory", error))?,
            ),
        };
        let [buyers, admin] =
            free_ports().map_err(|error| Failure::world("a free port on 127.0.0.1", error))?;
        let mut random = Random::new(crate::random::fresh_seed(), 0x5ec2e7);
        let secret = format!("{:016x}{:016x}{:016x}", random.next(), random.next(), random.next());
        let mut server = Self {
            program,
            directory,
            buyers_url: format!("http://127.0.0.1:{buyers}"),
            admin_url: format!("http://127.0.0.1:{admin}"),
            secret,
            process: None,
        };
        let configuration = server.configuration(setting, buyers, admin);
        let path = server.path().join("floodgate.toml");
        std::fs::write(&path, configuration).map_err(|error| Failure::world(path.display(), error))?;
        server.restart().await?;
        Ok(server)
    }

    fn configuration(&self, setting: &Setting, buyers: u16, admin: u16) -> String {
        let Setting { per_user_rps, orders_per_second_max, sale } = setting;
        let directory = self.path().display();
        let mut toml = format!(
            r#"[gateway]
listen = "127.0.0.1:{buyers}"
trusted_proxies = ["127.0.0.1/32"]

[admin]
listen = "127.0.0.1:{admin}"
token_file = "{directory}/admin.token"

[auth]
mode = "jwt"
hs256_secret = "{secret}"

[gate]
challenge = "off"
opens_before_s = 600
pass_ttl_s = 600

[limits]
per_user_rps = {per_user_rps}
per_address_rps = 0

[queue]
directory = "{directory}/queue"

[orders]
backend = "sqlite"
database_url = "{database}"

[drain]
orders_per_second_max = {orders_per_second_max}
"#,
            secret = self.secret,
            database = self.database_url(),
        );
        if let Some(sale) = sale {
            let _ = write!(toml, "{}", sale.toml());
        }
        toml
    }

    /// Starts the program on the same directory and waits until it is ready. Returns how long that took.
    pub(crate) async fn restart(&mut self) -> Result<Duration, Failure> {
        let started = Instant::now();
        self.launch()?;
        self.ready(started).await
    }

    /// Starts the program on the same directory, ready or not.
    pub(crate) fn launch(&mut self) -> Result<(), Failure> {
        let process =
            Process::start(&self.program, &["--config", "floodgate.toml"], self.path(), &self.log())
                .map_err(|error| Failure::world(self.program.display(), error))?;
        self.process = Some(process);
        Ok(())
    }

    async fn ready(&mut self, started: Instant) -> Result<Duration, Failure> {
        let log = self.log();
        let client = Client::new(&self.admin_url, 1, Duration::from_secs(2)).map_err(Failure::World)?;
        let operator = Operator::new(vec![Listener { client, token: None }]);
        loop {
            if operator.ready().await {
                return Ok(started.elapsed());
            }
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                return Err(Failure::World(format!(
                    "the server ended with {status} while starting:\n{}",
                    tail(&log)
                )));
            }
            if started.elapsed() > READY_WITHIN {
                return Err(Failure::World(format!(
                    "the server was not ready within {} s:\n{}",
                    READY_WITHIN.as_secs(),
                    tail(&log)
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        match self.process.take() {
            Some(mut process) => process.kill().await.map_err(|error| Failure::world("kill", error)),
            None => Ok(()),
        }
    }

    /// SIGTERM; `None` when it had to be killed after 30 s.
    pub(crate) async fn terminate(&mut self) -> Result<Option<ExitStatus>, Failure> {
        match self.process.take() {
            Some(mut process) => {
                process.terminate(SHUTDOWN_WITHIN).await.map_err(|error| Failure::world("SIGTERM", error))
            }
            None => Ok(None),
        }
    }

    /// The buyers' side through at most `sockets_max` connections.
    pub(crate) fn shop(&self, sockets_max: usize) -> Result<Shop, Failure> {
        let client = Client::new(&self.buyers_url, sockets_max, ANSWER_WITHIN).map_err(Failure::World)?;
        Ok(Shop::new(vec![client]))
    }

    /// The operator's side, with the token that the server made at its first start.
    pub(crate) fn operator(&self) -> Result<Operator, Failure> {
        let client = Client::new(&self.admin_url, 4, ANSWER_WITHIN).map_err(Failure::World)?;
        let path = self.path().join("admin.token");
        let token = std::fs::read_to_string(&path).map_err(|error| Failure::world(path.display(), error))?;
        Ok(Operator::new(vec![Listener { client, token: Some(token.trim().to_owned()) }]))
    }

    pub(crate) fn signer(&self) -> Signer {
        Signer::new(&self.secret, None, None)
    }

    pub(crate) fn database_url(&self) -> String {
        format!("sqlite://{}/orders.db", self.path().display())
    }

    /// The running process.
    pub(crate) fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    pub(crate) fn path(&self) -> &Path {
        match &self.directory {
            Directory::Temporary(directory) => directory.path(),
            Directory::Kept(path) => path,
        }
    }

    fn log(&self) -> PathBuf {
        self.path().join("server.log")
    }

    /// Shows the server's last lines when something broke.
    pub(crate) fn explain(&self, broken: &[String]) {
        if !broken.is_empty() {
            let again = match self.directory {
                Directory::Temporary(_) => {
                    "repeat with the same --seed and --keep DIRECTORY to keep everything".to_owned()
                }
                Directory::Kept(_) => format!("everything is kept in {}", self.path().display()),
            };
            terminal::say(format_args!("the server's last lines ({again}):\n{}", tail(&self.log())));
        }
    }
}

/// Builds the server with cargo and returns the program, or takes the one named.
pub(crate) async fn program(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return path
            .canonicalize()
            .map_err(|error| Failure::Usage(format!("--server {}: {error}", path.display())));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    terminal::say("building floodgate (cargo build --release --bin floodgate) …");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = tokio::process::Command::new(cargo)
        .args(["build", "--release", "--bin", "floodgate", "--message-format", "json-render-diagnostics"])
        .current_dir(workspace)
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Failure::world("cargo", error))?;
    if !output.status.success() {
        return Err(Failure::World(
            "floodgate does not build: see above, or name a program with --server".into(),
        ));
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| Failure::World("cargo named no executable `floodgate`: name one with --server".into()))
}

/// The program named `floodgate` in cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "floodgate")
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

/// Two ports that were free a moment ago.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let (first, second) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok([first.local_addr()?.port(), second.local_addr()?.port()])
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"queue"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"floodgate"},"executable":"/t/release/floodgate"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/floodgate")));
        assert_eq!(executable("{}"), None);
    }

    #[tokio::test]
    async fn a_server_that_ends_while_starting_is_told_with_its_last_words() {
        let setting = Setting { per_user_rps: 5, orders_per_second_max: 10, sale: None };
        let failed = Server::start("/bin/ls".into(), &setting, None).await;
        let Err(Failure::World(text)) = failed else { panic!("ls is no server") };
        assert!(text.contains("while starting") && text.contains("unrecognized option"), "{text}");
    }
}

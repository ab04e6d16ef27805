//! Floodgate as it runs in production, on one machine: gateways and workers, each a process of its own, over engines that
//! somebody else has started. It knows the public interface only: the configuration, the command line, HTTP.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::http::Client;
use crate::{Directory, Error, Nginx, Port, Process, ProcessOptions, wrong_clock};

const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// A deployment of the testbed is open to nobody but this machine.
const SECRET: &str = "a-secret-of-the-testbed-that-everybody-may-know";

/// What to run.
#[derive(Clone, Debug)]
pub struct DeploymentOptions {
    /// A `floodgate` built with `--features production`.
    pub program: PathBuf,
    /// How many gateways, each with a log of its own.
    pub gateways: usize,
    /// How many workers, each told of every log.
    pub workers: usize,
    /// What all share: `[stock]`, `[sold_out]`, `[orders]`, `[drain]`, `[auth]` without secrets, `[gate]` without
    /// pass_secrets, `[limits]`, `[[sale]]`. Listeners, `[queue]` and secrets are added.
    pub toml: String,
}

/// One `floodgate` process of it: a [`Process`], to be killed, frozen and the like.
#[derive(Debug)]
pub struct Instance {
    process: Process,
    buyers: Option<Port>,
    admin: Port,
    log: Option<PathBuf>,
}

impl Instance {
    /// Of later starts: its clock is wrong by so many seconds.
    pub fn set_clock_wrong_by(&self, seconds: i64) -> Result<(), Error> {
        for (name, value) in wrong_clock::ahead_by(seconds)? {
            self.process.set_environment(name, &value);
        }
        Ok(())
    }

    /// What it says that it lacks, as it says it.
    pub fn readiness(&self) -> String {
        match Client::new(self.admin_port(), ANSWER_WITHIN).request("GET", "/readyz", &[], "") {
            Ok(answer) => answer.body,
            Err(error) => error.to_string(),
        }
    }

    /// Of a gateway: where buyers connect.
    pub fn buyers_port(&self) -> u16 {
        self.buyers.as_ref().map_or(0, Port::number)
    }

    /// Health, metrics, the operator's calls.
    pub fn admin_port(&self) -> u16 {
        self.admin.number()
    }

    /// Of a gateway: its log's directory.
    pub fn log_directory(&self) -> Option<&Path> {
        self.log.as_deref()
    }
}

impl Deref for Instance {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Gateways and workers. Dropped as a whole.
#[derive(Debug)]
pub struct Deployment {
    gateways: Vec<Instance>,
    workers: Vec<Instance>,
    program: PathBuf,
    directory: Directory,
}

impl Deployment {
    /// Writes the configuration; nothing runs yet.
    pub fn prepare(options: &DeploymentOptions) -> Result<Self, Error> {
        let directory = Directory::new("floodgate")?;
        let at = directory.path().to_owned();
        let logs: Vec<PathBuf> =
            (1..=options.gateways).map(|number| at.join(format!("gateway-{number}/queue"))).collect();
        directory.write("admin.token", &format!("{SECRET}\n"))?;
        directory.write("jwt.secret", SECRET)?;
        directory.write("pass.secret", &format!("passes-{SECRET}"))?;
        directory.write("journal.secret", &format!("journal-{SECRET}"))?;
        private(&at, &["admin.token", "jwt.secret", "pass.secret", "journal.secret"])?;
        directory.write("floodgate.toml", &options.toml)?;
        let sources: Vec<String> =
            logs.iter().map(|log| format!("{:?}", log.display().to_string())).collect();
        let sources = format!("[{}]", sources.join(", "));

        let instance = |name: String, role: &str, log: Option<&PathBuf>| -> Result<Instance, Error> {
            let home = at.join(&name);
            fs::create_dir(&home).map_err(|error| Error::io(home.display(), &error))?;
            let admin = Port::claim()?;
            let mut environment = shared_environment(&at);
            environment.insert("FLOODGATE_ADMIN__LISTEN".into(), format!("127.0.0.1:{}", admin.number()));
            let buyers = match log {
                Some(log) => {
                    let buyers = Port::claim()?;
                    let listen = format!("127.0.0.1:{}", buyers.number());
                    environment.insert("FLOODGATE_GATEWAY__LISTEN".into(), listen);
                    environment.insert("FLOODGATE_QUEUE__DIRECTORY".into(), log.display().to_string());
                    Some(buyers)
                }
                None => {
                    environment.insert("FLOODGATE_QUEUE__SOURCES".into(), sources.clone());
                    let own = home.join("queue").display().to_string();
                    environment.insert("FLOODGATE_QUEUE__WORKER_DIRECTORY".into(), own);
                    None
                }
            };
            let options = ProcessOptions {
                name,
                program: options.program.clone(),
                arguments: vec!["--config".into(), at.join("floodgate.toml").into(), role.into()],
                environment,
                log: home.join("output"),
                directory: home,
            };
            let number = admin.number();
            let ready = move || {
                let asked = Client::new(number, ANSWER_WITHIN).request("GET", "/readyz", &[], "");
                asked.is_ok_and(|answer| answer.status == 200)
            };
            let process = Process::new(options, ready);
            Ok(Instance { process, buyers, admin, log: log.cloned() })
        };
        let gateways = logs
            .iter()
            .enumerate()
            .map(|(index, log)| instance(format!("gateway-{}", index + 1), "gateway", Some(log)))
            .collect::<Result<_, _>>()?;
        let workers = (1..=options.workers)
            .map(|number| instance(format!("worker-{number}"), "worker", None))
            .collect::<Result<_, _>>()?;
        Ok(Self { gateways, workers, program: options.program.clone(), directory })
    }

    /// Makes the tables, starts everything, and waits until all are ready.
    pub fn start(options: &DeploymentOptions) -> Result<Self, Error> {
        let deployment = Self::prepare(options)?;
        deployment.must(&["migrate", "--apply"])?;
        for instance in deployment.instances() {
            instance.spawn()?;
        }
        for instance in deployment.instances() {
            instance.wait_until_ready()?;
        }
        Ok(deployment)
    }

    /// An nginx before the gateways: it spreads buyers over them and says who they are.
    pub fn nginx(&self, port: Port) -> Result<Nginx, Error> {
        let servers: String = self
            .gateways
            .iter()
            .map(|gateway| format!("server 127.0.0.1:{};\n", gateway.buyers_port()))
            .collect();
        Nginx::start_at(port, |port| {
            format!(
                "upstream gateways {{\n{servers}keepalive 128;\n}}\n\
                 server {{\nlisten 127.0.0.1:{port};\nproxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\";\nproxy_set_header Host $http_host;\nproxy_buffering off;\n\
                 proxy_connect_timeout 1s;\n\
                 location / {{ proxy_pass http://gateways; \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}\n\
                 # The demo's login answers only what was not forwarded.\n\
                 location = /api/v1/demo/login {{ proxy_pass http://gateways; }}\n}}"
            )
        })
    }

    /// Ends everything in good order: buyers first, then the drains.
    pub fn stop(&self) -> Result<(), Error> {
        for instance in self.instances() {
            instance.process.stop()?;
        }
        Ok(())
    }

    /// The gateways.
    pub fn gateways(&self) -> &[Instance] {
        &self.gateways
    }

    /// The workers.
    pub fn workers(&self) -> &[Instance] {
        &self.workers
    }

    /// Gateways, then workers.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.gateways.iter().chain(&self.workers)
    }

    /// The configuration that all share.
    pub fn config_file(&self) -> PathBuf {
        self.directory.path().join("floodgate.toml")
    }

    /// The file that holds the operator's token.
    pub fn admin_token_file(&self) -> PathBuf {
        self.directory.path().join("admin.token")
    }

    /// The file that holds the key of the users' tokens.
    pub fn jwt_secret_file(&self) -> PathBuf {
        self.directory.path().join("jwt.secret")
    }

    /// Keeps a secret in a file that only this user may read.
    pub fn keep_secret(&self, name: &str, secret: &str) -> Result<PathBuf, Error> {
        let file = self.directory.write(name, "")?;
        private(self.directory.path(), &[name])?;
        self.directory.write(name, secret)?;
        Ok(file)
    }

    /// The file that holds the key of the passes.
    pub fn pass_secret_file(&self) -> PathBuf {
        self.directory.path().join("pass.secret")
    }

    /// A file for a shell to read, after which commands speak with the first gateway.
    pub fn environment_file(&self) -> Result<PathBuf, Error> {
        let gateway = self.gateways.first().ok_or_else(|| Error::new("no gateway"))?;
        let environment = self.environment(gateway);
        let lines: Vec<String> =
            environment.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
        self.directory.write("operator.env", &lines.concat())
    }

    /// What a command needs in its environment beside the configuration, to speak with this gateway.
    pub fn environment(&self, gateway: &Instance) -> BTreeMap<String, String> {
        let mut environment = shared_environment(self.directory.path());
        environment.insert("FLOODGATE_ADMIN__LISTEN".into(), format!("127.0.0.1:{}", gateway.admin_port()));
        if let Some(log) = gateway.log_directory() {
            environment.insert("FLOODGATE_QUEUE__DIRECTORY".into(), log.display().to_string());
        }
        environment
    }

    /// Runs one command of `floodgate`, such as `audit`, as the operator of the first gateway that runs.
    pub fn floodgate(&self, arguments: &[&str]) -> Result<Output, Error> {
        let running = self.gateways.iter().find(|gateway| gateway.process.is_running());
        let gateway = running.or(self.gateways.first());
        let environment = gateway.map(|gateway| self.environment(gateway)).unwrap_or_default();
        Command::new("timeout")
            .args(["--kill-after=1", "120"])
            .arg(&self.program)
            .arg("--config")
            .arg(self.config_file())
            .args(arguments)
            .envs(environment)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Error::io(self.program.display(), &error))
    }

    /// The same; anything but exit code 0 is an error that quotes what was said.
    pub fn must(&self, arguments: &[&str]) -> Result<String, Error> {
        let output = self.floodgate(arguments)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(Error::new(format!("floodgate {}: {}\n{said}{words}", arguments.join(" "), output.status)))
    }
}

/// So many seconds from now (before now, if negative), as configuration and HTTP write times.
pub fn moment(after_s: i64) -> String {
    let at = time::OffsetDateTime::now_utc() + time::Duration::seconds(after_s);
    // Whole seconds; the year has four digits for as long as anybody runs this.
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

fn shared_environment(directory: &Path) -> BTreeMap<String, String> {
    let file = |name: &str| directory.join(name).display().to_string();
    BTreeMap::from([
        ("FLOODGATE_ADMIN__TOKEN_FILE".into(), file("admin.token")),
        ("FLOODGATE_ADMIN__JOURNAL_SECRET_FILE".into(), file("journal.secret")),
        ("FLOODGATE_AUTH__HS256_SECRET_FILE".into(), file("jwt.secret")),
        (
            "FLOODGATE_GATE__PASS_SECRETS".into(),
            format!("[{{ id = \"k1\", secret_file = {:?} }}]", file("pass.secret")),
        ),
    ])
}

fn private(directory: &Path, names: &[&str]) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    for name in names {
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o600))
            .map_err(|error| Error::io(name, &error))?;
    }
    Ok(())
}

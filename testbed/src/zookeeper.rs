//! A ZooKeeper server of one's own, or three of them.

use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use crate::process::find;
use crate::redis::ask;
use crate::{Directory, Error, Port, Process, ProcessOptions};

/// Where Debian puts it; its manifest names all other jars but the one that prints the log.
const JARS: [&str; 2] = ["/usr/share/java/zookeeper.jar", "/usr/share/java/slf4j-simple.jar"];
const PACKAGE: &str = "libzookeeper-java";
const SERVERS: usize = 3;
/// An ensemble may need more than one election on a busy machine.
const LEADER_WITHIN: Duration = Duration::from_secs(90);

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct ZooKeeperOptions {
    /// Further lines of zoo.cfg.
    pub config: Vec<(String, String)>,
    /// A certain port instead of any free one.
    pub port: Option<u16>,
}

/// A running server. Sessions may be as short as 500 ms; those that were due while it stood still expire when it thaws.
#[derive(Debug)]
pub struct ZooKeeper {
    process: Process,
    _directory: Directory,
    port: Port,
    // Claimed as long as the server may come back; only the configuration names them.
    _peers: Vec<Port>,
}

impl ZooKeeper {
    /// Starts a server that stands alone and waits until it serves.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(ZooKeeperOptions::default())
    }

    /// The same with more configuration.
    pub fn start_with(options: ZooKeeperOptions) -> Result<Self, Error> {
        let port = options.port.map_or_else(Port::claim, Port::take)?;
        let server = Self::prepare(port, &options.config, None, Vec::new())?;
        server.process.start()?;
        Ok(server)
    }

    fn prepare(
        port: Port,
        config: &[(String, String)],
        id: Option<usize>,
        peers: Vec<Port>,
    ) -> Result<Self, Error> {
        let java = find("java", "default-jre-headless")?;
        if let Some(missing) = JARS.iter().find(|jar| !Path::new(jar).exists()) {
            return Err(Error::missing(missing, PACKAGE));
        }
        let directory = Directory::new("zookeeper")?;
        let mut text = format!(
            "tickTime=500\ninitLimit=40\nsyncLimit=20\nminSessionTimeout=500\nmaxSessionTimeout=60000\n\
             clientPortAddress=127.0.0.1\nclientPort={}\ndataDir={}\n\
             admin.enableServer=false\n4lw.commands.whitelist=*\n",
            port.number(),
            directory.path().join("data").display(),
        );
        for (key, value) in config {
            text.push_str(&format!("{key}={value}\n"));
        }
        let file = directory.write("zoo.cfg", &text)?;
        if let Some(id) = id {
            std::fs::create_dir(directory.path().join("data"))
                .map_err(|error| Error::io("the data directory", &error))?;
            directory.write("data/myid", &id.to_string())?;
        }
        let mut arguments: Vec<_> = [
            "-Xmx48m",
            "-Xss512k",
            "-XX:+UseSerialGC",
            // Up in half the time; nothing here runs long enough for the other compiler.
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dzookeeper.jmx.log4j.disable=true",
            "-cp",
        ]
        .map(Into::into)
        .into();
        arguments.push(JARS.join(":").into());
        arguments.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".into());
        arguments.push(file.into());
        let options = ProcessOptions {
            name: format!("ZooKeeper on port {}", port.number()),
            program: java,
            arguments,
            environment: Default::default(),
            directory: directory.path().to_owned(),
            log: directory.path().join("log"),
        };
        let number = port.number();
        let process = Process::new(options, move || mode(number).is_some());
        Ok(Self { process, _directory: directory, port, _peers: peers })
    }

    /// `127.0.0.1:PORT`
    pub fn connect_string(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Its port for clients; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// One of ZooKeeper's four-letter commands, such as `srvr` or `cons`.
    pub fn command(&self, word: &str) -> Result<String, Error> {
        ask(self.port(), word)
            .ok_or_else(|| Error::new(format!("no answer to {word} on port {}", self.port())))
    }

    /// Whether it leads its ensemble now.
    pub fn is_leader(&self) -> bool {
        mode(self.port()).is_some_and(|mode| mode == "leader")
    }
}

impl Deref for ZooKeeper {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// `standalone`, `leader` or `follower`; none while it serves nobody.
fn mode(port: u16) -> Option<String> {
    let answer = ask(port, "srvr")?;
    answer.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
}

/// Three servers, of which one may be missing.
#[derive(Debug)]
pub struct ZooKeeperEnsemble {
    servers: Vec<ZooKeeper>,
}

impl ZooKeeperEnsemble {
    /// Starts three and waits until one leads and all serve.
    pub fn start() -> Result<Self, Error> {
        let mut config = Vec::new();
        let mut claimed = Vec::new();
        for id in 1..=SERVERS {
            let (quorum, election) = (Port::claim()?, Port::claim()?);
            let address = format!("127.0.0.1:{}:{}", quorum.number(), election.number());
            config.push((format!("server.{id}"), address));
            claimed.push(vec![quorum, election]);
        }
        let servers = (1..=SERVERS)
            .zip(claimed)
            .map(|(id, peers)| ZooKeeper::prepare(Port::claim()?, &config, Some(id), peers))
            .collect::<Result<Vec<_>, _>>()?;
        for server in &servers {
            server.spawn()?;
        }
        for server in &servers {
            server.wait_until_ready()?;
        }
        Ok(Self { servers })
    }

    /// All servers, separated by commas.
    pub fn connect_string(&self) -> String {
        self.servers.iter().map(ZooKeeper::connect_string).collect::<Vec<_>>().join(",")
    }

    /// The servers.
    pub fn servers(&self) -> &[ZooKeeper] {
        &self.servers
    }

    /// The one that leads; waits for an election.
    pub fn leader(&self) -> Result<&ZooKeeper, Error> {
        let deadline = std::time::Instant::now() + LEADER_WITHIN;
        loop {
            if let Some(leader) = self.servers.iter().find(|server| server.is_leader()) {
                return Ok(leader);
            }
            if std::time::Instant::now() > deadline {
                return Err(Error::new(format!("no ZooKeeper server leads after {LEADER_WITHIN:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

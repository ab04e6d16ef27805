//! A MariaDB server of one's own.

use std::ffi::OsString;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::process::{find, run};
use crate::{Directory, Error, Port, Process, ProcessOptions};

const PACKAGE: &str = "mariadb-server-core mariadb-client-core";
const USER: &str = "floodgate";
const PASSWORD: &str = "floodgate";

/// Small, and the same for template and servers: InnoDB refuses a redo log of another size less quickly than it starts.
const SIZES: [&str; 4] = [
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=48M",
    "--innodb-temp-data-file-path=ibtmp1:12M:autoextend",
    "--aria-log-file-size=8M",
];

/// A running server: every commit is synced; `floodgate` may do anything, `root` comes in only through the socket.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    directory: Directory,
    port: Port,
}

impl MariaDb {
    /// Starts one and waits until it takes queries.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(&[])
    }

    /// The same with further options of mariadbd, such as `--max-connections=5`.
    pub fn start_with(options: &[&str]) -> Result<Self, Error> {
        let program = find("mariadbd", PACKAGE)?;
        let port = Port::claim()?;
        let directory = Directory::new("mariadb")?;
        copy_template(&directory.path().join("data"))?;
        let mut arguments = vec![OsString::from("--no-defaults")];
        arguments.extend(as_root().iter().map(OsString::from));
        arguments.extend(SIZES.map(OsString::from));
        for option in [
            format!("--datadir={}", directory.path().join("data").display()),
            format!("--socket={}", socket(&directory).display()),
            format!("--pid-file={}", directory.path().join("pid").display()),
            format!("--port={}", port.number()),
            "--bind-address=127.0.0.1".to_owned(),
            "--skip-name-resolve".to_owned(),
            "--innodb-flush-log-at-trx-commit=1".to_owned(),
            "--character-set-server=utf8mb4".to_owned(),
            "--performance-schema=off".to_owned(),
            // Threads of its own are the larger part of a small server's start.
            "--innodb-read-io-threads=1".to_owned(),
            "--innodb-write-io-threads=2".to_owned(),
            "--innodb-purge-threads=1".to_owned(),
        ] {
            arguments.push(option.into());
        }
        arguments.extend(options.iter().map(OsString::from));
        let options = ProcessOptions {
            name: format!("mariadbd on port {}", port.number()),
            program,
            arguments,
            environment: Default::default(),
            directory: directory.path().to_owned(),
            log: directory.path().join("log"),
        };
        let (number, socket) = (port.number(), socket(&directory));
        // Its socket is its own, unlike a port; it greets there and on the port from the same moment on.
        let ready =
            move || crate::redis::ask(number, "").is_some() && as_root_at(&socket, "", "SELECT 1").is_ok();
        let server = Self { process: Process::new(options, ready), directory, port };
        server.process.start()?;
        Ok(server)
    }

    /// `mysql://floodgate:PASSWORD@127.0.0.1:PORT/DATABASE`; creates the database if there is none.
    pub fn url(&self, database: &str) -> Result<String, Error> {
        self.sql("", &format!("CREATE DATABASE IF NOT EXISTS `{database}`"))?;
        Ok(format!("mysql://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port()))
    }

    /// Carries out statements as root through the socket, which works even when no connection is left for others. Rows come
    /// as lines, columns separated by tabs, without headings.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String, Error> {
        as_root_at(&socket(&self.directory), database, statements)
    }

    /// Its port; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }
}

impl Deref for MariaDb {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

fn socket(directory: &Directory) -> PathBuf {
    directory.path().join("socket")
}

fn as_root_at(socket: &Path, database: &str, statements: &str) -> Result<String, Error> {
    let socket = format!("--socket={}", socket.display());
    // Without it the client goes by the locale, and shows ?? where there is none.
    let charset = "--default-character-set=utf8mb4";
    let mut arguments =
        vec!["--no-defaults", "--user=root", &socket, charset, "--batch", "--skip-column-names"];
    arguments.extend(["--connect-timeout=30", "--execute", statements]);
    if !database.is_empty() {
        arguments.push(database);
    }
    run(&find("mariadb", PACKAGE)?, &arguments, &[])
}

/// mariadbd will not run as root unless told to.
fn as_root() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["--user=root"] } else { &[] }
}

/// The system tables are made once a process; that takes seconds, copying them does not.
fn copy_template(target: &Path) -> Result<(), Error> {
    static TEMPLATE: Mutex<Option<Directory>> = Mutex::new(None);
    let mut template = TEMPLATE.lock().unwrap_or_else(PoisonError::into_inner);
    if template.is_none() {
        *template = Some(make_template()?);
    }
    let Some(template) = template.as_ref() else { return Ok(()) };
    let copied = Command::new("cp")
        .args(["-R", "--sparse=always", "--reflink=auto"])
        .arg(template.path().join("data"))
        .arg(target)
        .status()
        .map_err(|error| Error::io("cp", &error))?;
    if copied.success() {
        Ok(())
    } else {
        Err(Error::new(format!("cannot copy to {}: disk full?", target.display())))
    }
}

fn make_template() -> Result<Directory, Error> {
    let install = find("mariadb-install-db", PACKAGE)?;
    let directory = Directory::new("mariadb-template")?;
    let data = directory.path().join("data");
    // The bootstrap server has no grant tables open until they are flushed.
    let users = directory.write(
        "users.sql",
        &format!(
            "FLUSH PRIVILEGES;\nCREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\n\
             GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'127.0.0.1';\n"
        ),
    )?;
    let mut arguments = vec!["--no-defaults".to_owned()];
    arguments.extend(as_root().iter().map(|&option| option.to_owned()));
    arguments.extend([
        "--auth-root-authentication-method=normal".to_owned(),
        "--skip-test-db".to_owned(),
        "--skip-name-resolve".to_owned(),
        format!("--datadir={}", data.display()),
        format!("--extra-file={}", users.display()),
    ]);
    arguments.extend(SIZES.map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed = run(&install, &arguments, &[])?;
    // The script ends well even when the server that it drives did not.
    if !data.join("mysql").is_dir() || fs::metadata(data.join("ibdata1")).is_err() {
        return Err(Error::new(format!("mariadb-install-db made no system tables:\n{printed}")));
    }
    Ok(directory)
}

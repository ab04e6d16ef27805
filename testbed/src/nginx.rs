//! An nginx of one's own, with whatever modules Debian has enabled.

use std::time::Duration;

use crate::process::find;
use crate::redis::ask;
use crate::{Directory, Error, Port, Process, ProcessOptions};

const PACKAGE: &str = "nginx libnginx-mod-http-lua";

/// A running nginx: one master, two workers.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    directory: Directory,
    port: Port,
}

impl Nginx {
    /// Starts one. `http` gives what stands inside `http { … }`, for the port that it is told, and must listen there on
    /// 127.0.0.1.
    pub fn start(http: impl FnOnce(u16) -> String) -> Result<Self, Error> {
        Self::start_at(Port::claim()?, http)
    }

    /// The same on a port of one's choice.
    pub fn start_at(port: Port, http: impl FnOnce(u16) -> String) -> Result<Self, Error> {
        let program = find("nginx", PACKAGE)?;
        let directory = Directory::new("nginx")?;
        let at = directory.path().display();
        // Workers of a root master would otherwise be nobody, who may not enter the directory.
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let text = format!(
            "include /etc/nginx/modules-enabled/*.conf;\n{user}daemon off;\nworker_processes 2;\npid {at}/pid;\n\
             error_log stderr warn;\nworker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
             http {{\naccess_log off;\nclient_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/fastcgi;\nuwsgi_temp_path {at}/uwsgi;\nscgi_temp_path {at}/scgi;\n{}\n}}\n",
            http(port.number()),
        );
        let file = directory.write("nginx.conf", &text)?;
        let process = Process::new(ProcessOptions {
            name: format!("nginx on port {}", port.number()),
            program,
            // No -p: Debian's modules are named relative to the prefix that it was built with.
            arguments: vec!["-c".into(), file.into(), "-e".into(), "stderr".into()],
            environment: Default::default(),
            directory: directory.path().to_owned(),
            log: directory.path().join("log"),
        });
        let nginx = Self { process, directory, port };
        nginx.launch()?;
        Ok(nginx)
    }

    fn launch(&self) -> Result<(), Error> {
        let port = self.port();
        // A request that nginx itself refuses: nothing behind it is asked.
        self.process.start(|| ask(port, "?\r\n\r\n").is_some_and(|answer| answer.contains("400 Bad Request")))
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Its port; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Of the master as started last.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where its configuration lies.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// SIGKILL to master and workers, and waits until they are gone.
    pub fn kill(&self) -> Result<(), Error> {
        self.process.kill()
    }

    /// SIGTERM, and waits until it has ended.
    pub fn stop(&self) -> Result<(), Error> {
        self.process.stop()
    }

    /// SIGSTOP to master and workers.
    pub fn freeze(&self) -> Result<(), Error> {
        self.process.freeze()
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<(), Error> {
        self.process.thaw()
    }

    /// Starts it again on the same port; stops it first if it runs.
    pub fn restart(&self) -> Result<(), Error> {
        self.process.stop()?;
        self.launch()
    }

    /// Processor time that master and workers have used since they were started.
    pub fn cpu(&self) -> Duration {
        self.process.cpu()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

//! An nginx of one's own, with whatever modules Debian has enabled.

use std::ops::Deref;

use crate::process::find;
use crate::redis::ask;
use crate::{Directory, Error, Port, Process, ProcessOptions};

const PACKAGE: &str = "nginx libnginx-mod-http-lua";

/// A running nginx: one master, two workers.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    _directory: Directory,
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
        let options = ProcessOptions {
            name: format!("nginx on port {}", port.number()),
            program,
            // No -p: Debian's modules are named relative to the prefix that it was built with.
            arguments: vec!["-c".into(), file.into(), "-e".into(), "stderr".into()],
            environment: Default::default(),
            directory: directory.path().to_owned(),
            log: directory.path().join("log"),
        };
        let number = port.number();
        // A request that nginx itself refuses: nothing behind it is asked.
        let ready = move || ask(number, "?\r\n\r\n").is_some_and(|answer| answer.contains("400 Bad Request"));
        let nginx = Self { process: Process::new(options, ready), _directory: directory, port };
        nginx.process.start()?;
        Ok(nginx)
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Its port; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port.number()
    }
}

impl Deref for Nginx {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

//! Where the flags are kept: `[user:password@]host:port[,host:port…][/root]`.

use std::time::Duration;

use zookeeper_client::{Acls, Client, CreateMode, CreateOptions};

use crate::SaleId;

/// Below the configured root, so that it has room for other things.
const FOLDER: &str = "sold-out";

/// A checked address.
#[derive(Clone)]
pub(crate) struct Address {
    servers: String,
    folder: String,
    /// `user:password` of ZooKeeper's scheme `digest`. Never shown.
    login: Option<String>,
}

impl Address {
    /// # Errors
    /// What is wrong with the address, without its login.
    pub(crate) fn parse(address: &str) -> Result<Self, String> {
        // The last `@` ends the login: a password may hold one.
        let (login, rest) = match address.rsplit_once('@') {
            Some((login, rest)) => (Some(login), rest),
            None => (None, address),
        };
        if login.is_some_and(|login| login.split_once(':').is_none_or(|(user, _)| user.is_empty())) {
            return Err("write a login as USER:PASSWORD@ before the servers".into());
        }
        let (servers, root) = rest.split_once('/').unwrap_or((rest, ""));
        let is_server = |server: &str| {
            server
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse().is_ok_and(|port: u16| port > 0))
        };
        if !servers.split(',').all(is_server) {
            return Err("write HOST:PORT,HOST:PORT/ROOT, such as \"127.0.0.1:2181/floodgate\"".into());
        }
        let is_name =
            |name: &str| !matches!(name, "" | "." | "..") && name.chars().all(|c| c.is_ascii_graphic());
        if !root.is_empty() && (!root.split('/').all(is_name) || root == "zookeeper") {
            return Err(
                "the root is names with / between them, none of them empty, and not \"zookeeper\"".into()
            );
        }
        let folder = if root.is_empty() { format!("/{FOLDER}") } else { format!("/{root}/{FOLDER}") };
        Ok(Self { servers: servers.into(), folder, login: login.map(Into::into) })
    }

    /// A session with whichever server answers first. Each is tried once: the caller has a back-off of its own, and the
    /// client's would keep a server that is back waiting for seconds.
    pub(super) async fn connect(&self, session_timeout: Duration) -> Result<Client, zookeeper_client::Error> {
        let mut connector = Client::connector().with_session_timeout(session_timeout).with_fail_eagerly();
        if let Some(login) = &self.login {
            connector = connector.with_auth("digest", login.as_bytes());
        }
        connector.connect(&self.servers).await
    }

    /// The parent of every sale's znode.
    pub(super) fn folder(&self) -> &str {
        &self.folder
    }

    pub(super) fn znode(&self, sale: &SaleId) -> String {
        format!("{}/{sale}", self.folder)
    }

    /// With a login only it may read and write; without one everybody who reaches the servers may.
    pub(super) fn options(&self) -> CreateOptions<'static> {
        let acls = if self.login.is_some() { Acls::creator_all() } else { Acls::anyone_all() };
        CreateMode::Persistent.with_acls(acls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let address = Address::parse("127.0.0.1:2181/floodgate").unwrap();
        assert_eq!((address.servers.as_str(), address.folder()), ("127.0.0.1:2181", "/floodgate/sold-out"));
        assert_eq!(address.znode(&"demo".parse().unwrap()), "/floodgate/sold-out/demo");
        let address = Address::parse("shop:pa@ss:w/rd@a:1,b:2,[::1]:3/shops/cn").unwrap();
        assert_eq!(address.login.as_deref(), Some("shop:pa@ss:w/rd"));
        assert_eq!((address.servers.as_str(), address.folder()), ("a:1,b:2,[::1]:3", "/shops/cn/sold-out"));
        assert_eq!(Address::parse("a:1").unwrap().folder(), "/sold-out");
    }

    #[test]
    fn mistakes_are_told_without_the_login() {
        for text in [
            "",
            "a",
            "a:0",
            "a:x",
            "a:1,",
            "a:1//b",
            "a:1/b/",
            "a:1/../b",
            "a:1/zookeeper",
            "u@a:1",
            ":p@a:1",
        ] {
            let problem = Address::parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(!problem.contains(":p"), "{problem}");
        }
    }
}

//! Who is on the other end: the address that counts, whether a header about it may be believed, and in whose name a
//! connection is held.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{HOST, HeaderName, ORIGIN, REFERER};
use hyper::{HeaderMap, Version};

use crate::config::Network;

/// Believes `X-Forwarded-For` from the proxies it was told of, from nobody else.
#[derive(Debug, Clone)]
pub struct Clients {
    trusted: Vec<Network>,
}

/// A request's other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The buyer's address as far as it is known.
    pub address: IpAddr,
    /// Whether the peer is one of our own proxies.
    pub through_proxy: bool,
}

/// Whom a request's rate and a connection's place are counted for: an IPv4 address, or all of an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(pub(crate) u64);

impl Holder {
    /// Nobody in particular: two of these have nothing to do with each other. No /64 of hosts is all ones.
    pub const NOBODY: Self = Self(u64::MAX);

    /// Who has this address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        // IPv4 as it lies in IPv6, but in the upper half, where ffff is of no network.
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(0xFFFF << 32 | u64::from(v4.to_bits())),
            IpAddr::V6(v6) => Self((v6.to_bits() >> 64) as u64),
        }
    }
}

impl Clients {
    /// Trusts these peers.
    #[must_use]
    pub fn new(trusted: Vec<Network>) -> Self {
        Self { trusted }
    }

    /// The rightmost address that no trusted proxy vouches for being a proxy itself.
    #[must_use]
    pub fn identify(&self, peer: SocketAddr, headers: &HeaderMap) -> Client {
        let peer = peer.ip().to_canonical();
        if !self.is_trusted(peer) {
            return Client { address: peer, through_proxy: false };
        }
        let mut address = peer;
        let lines = headers.get_all("x-forwarded-for");
        // Several lines are one list; `iter` is not double-ended over values that fail to decode, so go line by line.
        for line in lines.iter().rev() {
            let Ok(line) = line.to_str() else { break };
            for hop in line.rsplit(',') {
                let Some(hop) = hop_address(hop.trim()) else {
                    return Client { address, through_proxy: true };
                };
                address = hop;
                if !self.is_trusted(hop) {
                    return Client { address, through_proxy: true };
                }
            }
        }
        Client { address, through_proxy: true }
    }

    /// Who holds a connection from `peer` as long as no request says more: through a proxy of ours many come.
    #[must_use]
    pub fn holder(&self, peer: SocketAddr) -> Holder {
        self.known(peer.ip())
    }

    /// For whom `client`'s request holds its connection.
    #[must_use]
    pub fn holder_of(&self, client: Client) -> Holder {
        self.known(client.address)
    }

    fn known(&self, address: IpAddr) -> Holder {
        if self.is_trusted(address) { Holder::NOBODY } else { Holder::of(address) }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn hop_address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.split_once(']')).map_or(text, |(inner, _)| inner);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()));
    address.map(|a: IpAddr| a.to_canonical())
}

/// Headers by which a proxy shows itself, beside those that begin as [`FORWARDING_PREFIXES`].
const FORWARDING_HEADERS: [&str; 12] = [
    "cdn-loop",
    "client-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-host",
    "x-proxyuser-ip",
    "x-real-ip",
    "x-request-id",
    "x-scheme",
];
const FORWARDING_PREFIXES: [&str; 9] = [
    "cf-",
    "cloudfront-",
    "fastly-",
    "x-amzn-",
    "x-arr-",
    "x-azure-",
    "x-envoy-",
    "x-forwarded",
    "x-original-",
];

fn shows_a_proxy(header: &HeaderName) -> bool {
    let name = header.as_str();
    FORWARDING_HEADERS.contains(&name) || FORWARDING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the request was made from this very machine, by a browser or a script that was told so: a loopback peer, a loopback
/// `Host` (so that no other site's name points here), and no trace of a proxy in between. One that is told nothing of headers
/// (nginx with a bare `proxy_pass`) makes up a loopback `Host`; what still gives it away is its HTTP/1.0, and the page that a
/// browser says it came from.
#[must_use]
pub fn is_local(peer: SocketAddr, version: Version, headers: &HeaderMap) -> bool {
    if !peer.ip().to_canonical().is_loopback()
        || version < Version::HTTP_11
        || headers.keys().any(shows_a_proxy)
    {
        return false;
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let came_from = [ORIGIN, REFERER].into_iter().flat_map(|name| headers.get_all(name));
    host.to_str().is_ok_and(is_loopback)
        && came_from
            .into_iter()
            .all(|page| page.to_str().is_ok_and(|page| authority(page).is_some_and(is_loopback)))
}

/// `shop.example:8080` of `http://shop.example:8080/sales/x`.
fn authority(page: &str) -> Option<&str> {
    let (_, rest) = page.split_once("://")?;
    rest.split(['/', '?', '#']).next()
}

/// Whether a host, with its port or without, names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identify(peer: &str, forwarded: &[&str]) -> String {
        let trusted = ["127.0.0.1/32", "10.0.0.0/8"].map(|n| n.parse().expect("a network")).to_vec();
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().expect("a value"));
        }
        let client =
            Clients::new(trusted).identify(SocketAddr::new(peer.parse().expect("a peer"), 9), &headers);
        client.address.to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(identify("192.0.2.7", &["203.0.113.1"]), "192.0.2.7");
        assert_eq!(identify("127.0.0.1", &["203.0.113.1"]), "203.0.113.1");
        assert_eq!(identify("::ffff:127.0.0.1", &["203.0.113.1"]), "203.0.113.1");
        // What the buyer wrote in front does not count.
        assert_eq!(identify("127.0.0.1", &["1.1.1.1, 203.0.113.1"]), "203.0.113.1");
        assert_eq!(identify("127.0.0.1", &["1.1.1.1, 203.0.113.1, 10.1.2.3"]), "203.0.113.1");
        assert_eq!(identify("127.0.0.1", &["1.1.1.1", "203.0.113.1"]), "203.0.113.1");
        assert_eq!(identify("127.0.0.1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(identify("127.0.0.1", &["203.0.113.1:5000"]), "203.0.113.1");
        assert_eq!(identify("127.0.0.1", &["nonsense, 10.0.0.9"]), "10.0.0.9");
        assert_eq!(identify("127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn a_holder_is_an_address_or_a_network_and_never_a_proxy_of_ours() {
        let clients = Clients::new(vec!["10.0.0.0/8".parse().expect("a network")]);
        let holder = |peer: &str| clients.holder(SocketAddr::new(peer.parse().expect("a peer"), 9));
        assert_eq!(holder("192.0.2.1"), holder("::ffff:192.0.2.1"));
        assert_ne!(holder("192.0.2.1"), holder("192.0.2.2"));
        assert_eq!(holder("2001:db8:0:1::1"), holder("2001:db8:0:1:ffff::2"));
        assert_ne!(holder("2001:db8:0:1::1"), holder("2001:db8:0:2::1"));
        assert_eq!(holder("10.1.2.3"), Holder::NOBODY);
        let through = |address: &str| {
            clients.holder_of(Client { address: address.parse().expect("an address"), through_proxy: true })
        };
        assert_eq!((through("192.0.2.1"), through("10.9.9.9")), (holder("192.0.2.1"), Holder::NOBODY));
    }

    fn is_local_with(peer: &str, version: Version, lines: &[(&str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        is_local(SocketAddr::new(peer.parse().expect("a peer"), 9), version, &headers)
    }

    #[test]
    fn local_means_loopback_host_and_no_proxy() {
        let case = |peer: &str, lines: &[(&str, &str)]| is_local_with(peer, Version::HTTP_11, lines);
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST"] {
            assert!(case("127.0.0.1", &[("host", host)]), "{host}");
            let origin = format!("http://{host}");
            assert!(case("::1", &[("host", host), ("origin", &origin), ("referer", &origin)]), "{host}");
        }
        for host in ["shop.example", "localhost.shop.example", "127.0.0.1.example", "10.0.0.1", "[::2]:1", ""]
        {
            assert!(!case("127.0.0.1", &[("host", host)]), "{host}");
            let page = format!("https://{host}/sales/x");
            assert!(!case("127.0.0.1", &[("host", "localhost"), ("referer", &page)]), "{page}");
        }
        assert!(!case("192.0.2.1", &[("host", "localhost")]));
        assert!(
            !case("127.0.0.1", &[]) && !case("127.0.0.1", &[("host", "localhost"), ("host", "localhost")])
        );
        let more =
            ["x-forwarded-for", "x-forwarded-host", "x-envoy-internal", "cf-connecting-ip", "x-original-url"];
        for header in FORWARDING_HEADERS.into_iter().chain(more) {
            assert!(!case("127.0.0.1", &[("host", "localhost"), (header, "x")]), "{header}");
        }
    }

    #[test]
    fn a_proxy_that_says_nothing_of_itself_is_seen_by_what_it_passes_on() {
        // nginx, `proxy_pass http://127.0.0.1:8080;` and nothing else: HTTP/1.0, and the Host of that line.
        assert!(!is_local_with("127.0.0.1", Version::HTTP_10, &[("host", "127.0.0.1:8080")]));
        // The same told to speak HTTP/1.1, with a shop's page behind it.
        for came_from in
            [("origin", "https://shop.example"), ("origin", "null"), ("referer", "https://shop.example/")]
        {
            let lines = [("host", "127.0.0.1:8080"), came_from];
            assert!(!is_local_with("127.0.0.1", Version::HTTP_11, &lines), "{came_from:?}");
        }
    }
}

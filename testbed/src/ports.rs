//! Free loopback ports that stay this process's own while a server is killed and started again.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, process};

use crate::Error;

/// Ports are taken from here up to where the kernel's own choices begin: a client that keeps calling a dead server is then never
/// given the server's port as its own end, which would keep the server from coming back.
const FIRST: u32 = 15_000;
const TRIES_MAX: u32 = 5_000;

/// A port of 127.0.0.1 that no other process's testbed hands out while this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    // An abstract socket's name is free again the moment that its process is gone, even by kill -9.
    _claim: UnixListener,
}

impl Port {
    /// Claims a free port.
    pub fn claim() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let kernels = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let kernels: u32 =
            kernels.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768);
        let room = kernels.saturating_sub(FIRST).max(1_000);
        for _ in 0..TRIES_MAX {
            // Processes begin at different places, so that they seldom meet.
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + process::id().wrapping_mul(257).wrapping_add(step) % room;
            let Ok(number) = u16::try_from(number) else { continue };
            if let Ok(port) = Self::take(number) {
                return Ok(port);
            }
        }
        Err(Error::new(format!("no free port after {TRIES_MAX} tries from {FIRST} on")))
    }

    /// Claims this port, or says who has it.
    pub fn take(number: u16) -> Result<Self, Error> {
        let name = format!("floodgate-testbed-port-{number}");
        let claim = SocketAddr::from_abstract_name(name)
            .and_then(|name| UnixListener::bind_addr(&name))
            .map_err(|error| Error::io(format!("port {number} is claimed by another testbed"), &error))?;
        // Bound by a stranger?
        TcpListener::bind((Ipv4Addr::LOCALHOST, number))
            .map_err(|error| Error::io(format!("port {number}"), &error))?;
        Ok(Self { number, _claim: claim })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

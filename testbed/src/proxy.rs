//! A TCP proxy in front of one server that cuts, delays, stalls, or swallows answers. Knows bytes only.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Error, Port};

/// Two threads each; one more is closed at once.
const CONNECTIONS_MAX: usize = 512;
const CHUNK: usize = 64 * 1024;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    cut: bool,
    stalled: bool,
    swallow: bool,
    delay: Duration,
    /// Both ends of every connection, to be shut down.
    connections: HashMap<u64, [TcpStream; 2]>,
    pumps: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
    next: AtomicU64,
    swallowed: AtomicU64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Requests,
    Replies,
}

/// Stands in front of `127.0.0.1:target`. Ends, with every connection, when dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
    port: Port,
}

impl Proxy {
    /// Starts one; the server need not run yet.
    pub fn start(target: u16) -> Result<Self, Error> {
        let proxy = Self {
            shared: Arc::new(Shared {
                target: SocketAddr::from((Ipv4Addr::LOCALHOST, target)),
                state: Mutex::default(),
                changed: Condvar::new(),
                next: AtomicU64::new(0),
                swallowed: AtomicU64::new(0),
            }),
            acceptor: Mutex::new(None),
            port: Port::claim()?,
        };
        proxy.listen()?;
        Ok(proxy)
    }

    /// Where to connect instead of the server.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Drops every connection and refuses new ones, until `heal`.
    pub fn cut(&self) -> Result<(), Error> {
        self.shared.state().cut = true;
        self.close_listener();
        self.drop_connections();
        Ok(())
    }

    /// Ends a cut and a stall; delay and swallowing stay as they are.
    pub fn heal(&self) -> Result<(), Error> {
        let was_cut = {
            let mut state = self.shared.state();
            state.stalled = false;
            std::mem::take(&mut state.cut)
        };
        self.shared.changed.notify_all();
        if was_cut { self.listen() } else { Ok(()) }
    }

    /// Drops every connection, but takes new ones.
    pub fn drop_connections(&self) {
        let mut state = self.shared.state();
        for (_, ends) in state.connections.drain() {
            for end in ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Lets nothing through in either direction while connections stay open, as a broken network does; until `heal`.
    pub fn stall(&self) {
        self.shared.state().stalled = true;
    }

    /// Holds everything back for so long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.shared.state().delay = delay;
    }

    /// While on, the next answer on each connection is swallowed and then the connection cut: the server has done what it was
    /// asked, and the client never hears of it. New connections fare the same.
    pub fn drop_replies(&self, on: bool) {
        self.shared.state().swallow = on;
    }

    /// How many answers were swallowed so far.
    pub fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    fn listen(&self) -> Result<(), Error> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port()))
            .map_err(|error| Error::io(format!("proxy on port {}", self.port()), &error))?;
        let shared = Arc::clone(&self.shared);
        let acceptor = thread::Builder::new()
            .name("proxy".into())
            .spawn(move || accept(&shared, &listener))
            .map_err(|error| Error::io("a proxy's thread", &error))?;
        *self.acceptor.lock().unwrap_or_else(PoisonError::into_inner) = Some(acceptor);
        Ok(())
    }

    /// The acceptor waits in the kernel; a connection of our own wakes it, and it sees that it is to end.
    fn close_listener(&self) {
        let acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(acceptor) = acceptor {
            let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port()));
            let _ = acceptor.join();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.cut();
        let pumps = std::mem::take(&mut self.shared.state().pumps);
        for pump in pumps {
            let _ = pump.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    for client in listener.incoming() {
        if shared.state().cut {
            return;
        }
        // A client that gave up in between is no reason to end.
        let Ok(client) = client else { continue };
        let Ok(server) = TcpStream::connect_timeout(&shared.target, CONNECT_WITHIN) else { continue };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (Ok(client_end), Ok(server_end)) = (client.try_clone(), server.try_clone()) else { continue };
        let (Ok(client_kept), Ok(server_kept)) = (client.try_clone(), server.try_clone()) else { continue };
        let mut state = shared.state();
        state.pumps.retain(|pump| !pump.is_finished());
        if state.cut || state.connections.len() >= CONNECTIONS_MAX {
            continue;
        }
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        state.connections.insert(number, [client_kept, server_kept]);
        for (from, to, direction) in
            [(client, server, Direction::Requests), (server_end, client_end, Direction::Replies)]
        {
            let shared = Arc::clone(shared);
            let pump = thread::Builder::new().name("proxy-pump".into()).spawn(move || {
                pump(&shared, number, from, to, direction);
            });
            state.pumps.extend(pump.ok());
        }
    }
}

/// Carries bytes one way until either end closes or the connection is dropped; then takes the other way down too.
fn pump(shared: &Shared, number: u64, mut from: TcpStream, mut to: TcpStream, direction: Direction) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        if !may_pass(shared, number, direction) || to.write_all(&chunk[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
    shared.state().connections.remove(&number);
}

fn may_pass(shared: &Shared, number: u64, direction: Direction) -> bool {
    let mut state = shared.state();
    let held_until = Instant::now() + state.delay;
    loop {
        // Dropped meanwhile.
        if !state.connections.contains_key(&number) {
            return false;
        }
        let now = Instant::now();
        if state.stalled {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        } else if now < held_until {
            let left = held_until - now;
            (state, _) = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        } else {
            break;
        }
    }
    if state.swallow && direction == Direction::Replies {
        shared.swallowed.fetch_add(1, Ordering::Relaxed);
        return false;
    }
    true
}

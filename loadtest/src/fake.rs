//! A tiny flash sale for tests: the public interface over one mutex and a SQLite file, with faults to plant.
//!
//! The spike is played against it as against a real target, and must find each fault.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::clock;

/// What the fake does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    /// Sells three units too many.
    Oversells,
    /// Promises one order without a row.
    LosesARow,
    /// Writes one promised order as rejected.
    Rejects,
    /// Says sold-out while three units remain.
    StopsEarly,
    /// Names a new order at the second press.
    Renames,
    /// Sells one unit to somebody and says sold-out.
    SellsSilently,
    /// Now and then executes and hangs up without an answer: nothing is broken by that.
    HangsUp,
    /// Promises 100 ms before it writes: a kill in between breaks promises, a SIGTERM does not.
    PromisesEarly,
    /// Has another secret than the crowd's.
    KnowsNobody,
    /// Asks image questions.
    AsksImages,
    /// Asks for a proof of work of this many bits: nothing is broken by that.
    AsksPuzzles(u32),
}

struct State {
    fault: Fault,
    sales: BTreeMap<String, Sale>,
    /// Status by order id.
    orders: BTreeMap<String, String>,
    presses: u64,
    /// Rows that were promised before they were written: see [`Fault::PromisesEarly`].
    unwritten: Vec<Row>,
    database: rusqlite::Connection,
}

struct Sale {
    definition: Value,
    total: i64,
    opens_ms: u64,
    /// Orders taken, whatever became of them.
    taken: i64,
}

struct Row {
    order_id: String,
    sale: String,
    user: String,
    held: i64,
    status: &'static str,
    written_at_ms: u64,
}

/// A running fake; its files go with it.
pub(crate) struct Fake {
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Fake {
    pub(crate) async fn start(fault: Fault) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, secret) in [("secret", "s3cret\n"), ("token", "t0ken\n")] {
            std::fs::write(directory.path().join(name), secret).expect("write");
        }
        let state = State::open(&directory.path().join("orders.db"), fault);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(listen(listener, state));
        Self { address, directory }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A program that serves as floodgate would, in a process of its own that can be killed: this test binary once more.
pub(crate) fn program(directory: &Path, fault: Fault) -> PathBuf {
    let binary = std::env::current_exe().expect("the test binary");
    let script = format!(
        "#!/bin/sh\nFAKE_FAULT={fault:?} exec '{}' --ignored --exact fake::serves_as_a_process\n",
        binary.display()
    );
    let path = directory.join("fake-floodgate");
    std::fs::write(&path, script).expect("write");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    path
}

/// No test: what [`program`] runs, in the directory that holds `floodgate.toml`, until it is ended.
#[tokio::test]
#[ignore = "a server, not a test"]
async fn serves_as_a_process() {
    let configuration = std::fs::read_to_string("floodgate.toml").expect("run by fake::program");
    let listens =
        configuration.lines().filter_map(|line| line.strip_prefix("listen = \"")?.strip_suffix('"'));
    let fault = std::env::var("FAKE_FAULT").unwrap_or_default();
    let fault = match fault.as_str() {
        "PromisesEarly" => Fault::PromisesEarly,
        "StopsEarly" => Fault::StopsEarly,
        _ => Fault::Nothing,
    };
    std::fs::write("admin.token", "t0ken").expect("write");
    let state = State::open(Path::new("orders.db"), fault);
    if let Some((_, sale)) = configuration.split_once("[[sale]]") {
        // The values of this file are JSON as well.
        let pairs = sale.lines().filter_map(|line| line.split_once(" = "));
        let pairs = pairs
            .map(|(key, value)| (key.to_owned(), serde_json::from_str::<Value>(value).expect("a value")));
        state.lock().publish(&Value::Object(pairs.collect()));
    }
    for address in listens {
        let listener = TcpListener::bind(address).await.expect("bind");
        tokio::spawn(listen(listener, state.clone()));
    }
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signal");
    terminate.recv().await;
    state.lock().write_rows(u64::MAX);
    std::process::exit(0);
}

async fn listen(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(serve(stream, state.clone()));
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut received = Vec::new();
    loop {
        let request = loop {
            if let Some(request) = Request::parse(&received) {
                break request;
            }
            let mut chunk = [0; 2048];
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(count) => received.extend_from_slice(&chunk[..count]),
            }
        };
        received.drain(..request.length);
        let Some((status, body)) = state.lock().answer(&request) else { return };
        let body = body.to_string();
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Value,
    length: usize,
}

impl Request {
    fn parse(received: &[u8]) -> Option<Self> {
        let head_length = received.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&received[..head_length]).into_owned();
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ').map(str::to_owned);
        let (method, path) = (first.next()?, first.next()?);
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
        let body_length: usize =
            headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let body = received.get(head_length..head_length + body_length)?;
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        Some(Self { method, path, headers, body, length: head_length + body_length })
    }

    /// The `sub` of a token that a real server would have checked.
    fn user(&self) -> Option<String> {
        let token = self.headers.get("authorization")?.strip_prefix("Bearer ")?;
        let claims =
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        Some(serde_json::from_slice::<Value>(&claims).ok()?["sub"].as_str()?.to_owned())
    }
}

type Reply = Option<(u16, Value)>;

fn refuse(status: u16, word: &str) -> Reply {
    Some((status, json!({ "type": format!("https://floodgate.invalid/problems/{word}") })))
}

impl State {
    fn open(path: &Path, fault: Fault) -> Arc<Mutex<Self>> {
        let database = rusqlite::Connection::open(path).expect("open");
        // A killed process loses nothing that the system has taken: no sync is needed here.
        let schema = "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
            CREATE TABLE IF NOT EXISTS floodgate_sales (sale_id TEXT PRIMARY KEY, total INTEGER, sold INTEGER, definition TEXT);
            CREATE TABLE IF NOT EXISTS floodgate_orders (order_id TEXT, sale_id TEXT, user_id TEXT, quantity INTEGER,
                units_held INTEGER, status TEXT, created_at TEXT)";
        database.execute_batch(schema).expect("schema");
        let mut state = Self {
            fault,
            sales: BTreeMap::new(),
            orders: BTreeMap::new(),
            presses: 0,
            unwritten: Vec::new(),
            database,
        };
        state.remember();
        Arc::new(Mutex::new(state))
    }

    fn remember(&mut self) {
        let mut sales =
            self.database.prepare("SELECT definition, total, sold FROM floodgate_sales").expect("select");
        let sales = sales
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))
            .expect("sales");
        for (definition, total, taken) in sales.map(|row| row.expect("a sale")) {
            let definition: Value = serde_json::from_str(&definition).expect("json");
            let sale = Sale::new(definition, total, taken).expect("a definition");
            self.sales.insert(sale.definition["id"].as_str().expect("an id").to_owned(), sale);
        }
        let mut orders =
            self.database.prepare("SELECT order_id, status FROM floodgate_orders").expect("select");
        let orders = orders.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("orders");
        self.orders = orders.map(|row| row.expect("an order")).collect();
    }

    fn answer(&mut self, request: &Request) -> Reply {
        self.write_rows(clock::unix_now_ms());
        let path: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET", ["readyz"]) => Some((200, json!({}))),
            ("GET", ["api", "v1", "time"]) => {
                Some((200, json!({ "now": clock::format_ms(clock::unix_now_ms()) })))
            }
            ("GET", ["api", "v1", "sales", sale]) => Some((200, self.sales.get(*sale)?.definition.clone())),
            ("PUT", ["admin", "v1", "sales"]) => self.publish(&request.body),
            ("GET", ["admin", "v1", "sales", sale]) => self.figures(sale),
            ("POST", ["admin", "v1", "sales", sale, "restock"]) => {
                self.restock(sale, request.body["units"].as_i64()?)
            }
            ("POST", ["api", "v1", "sales", _, "challenges"]) => match self.fault {
                Fault::AsksPuzzles(bits) => {
                    let puzzle = json!({ "algorithm": "sha256", "prefix": "p", "bits": bits });
                    Some((201, json!({ "challenge": "c", "kind": "proof-of-work", "puzzle": puzzle })))
                }
                _ => Some((201, json!({ "challenge": "c", "kind": "image", "image_url": "/x" }))),
            },
            ("POST", ["api", "v1", "sales", _, "passes"]) if matches!(self.fault, Fault::KnowsNobody) => {
                refuse(401, "unauthorized")
            }
            ("POST", ["api", "v1", "sales", _, "passes"]) if !self.is_answered(&request.body) => {
                refuse(400, "bad-request")
            }
            ("POST", ["api", "v1", "sales", _, "passes"]) => {
                let user = request.user()?;
                Some((
                    201,
                    json!({ "pass": format!("pass.{user}"), "order_id": format!("O-{user}"), "expires_at": "" }),
                ))
            }
            ("POST", ["api", "v1", "sales", sale, "orders"]) => self.press(sale, request),
            ("GET", ["api", "v1", "orders", order_id]) => match self.orders.get(*order_id) {
                Some(status) => Some((200, json!({ "order_id": order_id, "status": status }))),
                None => refuse(404, "unknown-order"),
            },
            _ => refuse(404, "unknown"),
        }
    }

    fn is_answered(&self, body: &Value) -> bool {
        match self.fault {
            Fault::AsksImages => false,
            Fault::AsksPuzzles(_) => {
                let answer: Option<u64> = body["answer"].as_str().and_then(|text| text.parse().ok());
                answer.is_some() && answer == crate::token::solve("p", 6, 1 << 20)
            }
            _ => true,
        }
    }

    fn publish(&mut self, definition: &Value) -> Reply {
        let sale = Sale::new(definition.clone(), definition["total"].as_i64()?, 0)?;
        let id = definition["id"].as_str()?.to_owned();
        let parameters: &[&dyn rusqlite::ToSql] = &[&id, &sale.total, &definition.to_string()];
        self.sql("INSERT OR IGNORE INTO floodgate_sales VALUES (?1, ?2, 0, ?3)", parameters);
        self.sales.insert(id, sale);
        Some((201, json!({})))
    }

    fn restock(&mut self, sale: &str, units: i64) -> Reply {
        self.sales.get_mut(sale)?.total += units;
        self.sql("UPDATE floodgate_sales SET total = total + ?1 WHERE sale_id = ?2", &[&units, &sale]);
        Some((200, json!({})))
    }

    fn figures(&self, id: &str) -> Reply {
        let sale = self.sales.get(id)?;
        let read = "SELECT sold FROM floodgate_sales WHERE sale_id = ?1";
        let sold: i64 = self.database.query_row(read, [id], |row| row.get(0)).expect("the sale");
        let pending = self.unwritten.len();
        Some((
            200,
            json!({ "total": sale.total, "remaining": sale.total - sold, "pending": pending, "confirmed": sold, "sold": sold,
                "backlog": pending, "at_rest": pending == 0, "epoch": 1, "paused_by": null }),
        ))
    }

    fn press(&mut self, id: &str, request: &Request) -> Reply {
        let user = request.headers.get("floodgate-pass")?.strip_prefix("pass.")?.to_owned();
        let order_id = format!("O-{user}");
        let sale = self.sales.get_mut(id)?;
        // The pass of this fake is no MAC: a forged one names a user that no crowd has.
        if user.contains(['A', 'B']) {
            return refuse(401, "pass-invalid");
        }
        if clock::unix_now_ms() < sale.opens_ms {
            return refuse(403, "not-started");
        }
        if request.body["quantity"].as_i64().unwrap_or(1) > 1 {
            return refuse(409, "limit-reached");
        }
        self.presses += 1;
        if self.orders.contains_key(&order_id) {
            let named = if self.fault == Fault::Renames { format!("{order_id}-again") } else { order_id };
            return Some((202, json!({ "order_id": named, "status": "queued" })));
        }
        let for_sale = match self.fault {
            Fault::Oversells => sale.total + 3,
            Fault::StopsEarly => sale.total - 3,
            _ => sale.total,
        };
        if sale.taken >= for_sale {
            return refuse(410, "sold-out");
        }
        let special = sale.taken == 5;
        sale.taken += 1;
        let (held, status) =
            if special && self.fault == Fault::Rejects { (0, "rejected") } else { (1, "unpaid") };
        self.orders.insert(order_id.clone(), status.to_owned());
        if !(special && self.fault == Fault::LosesARow) {
            let delay_ms = if self.fault == Fault::PromisesEarly { 100 } else { 0 };
            let written_at_ms = clock::unix_now_ms() + delay_ms;
            self.unwritten.push(Row {
                order_id: order_id.clone(),
                sale: id.to_owned(),
                user,
                held,
                status,
                written_at_ms,
            });
            self.write_rows(clock::unix_now_ms());
        }
        match self.fault {
            Fault::SellsSilently if special => {
                self.orders.remove(&order_id);
                refuse(410, "sold-out")
            }
            Fault::HangsUp if self.presses.is_multiple_of(7) => None,
            _ => Some((202, json!({ "order_id": order_id, "status": "queued" }))),
        }
    }

    fn write_rows(&mut self, now_ms: u64) {
        while self.unwritten.first().is_some_and(|row| row.written_at_ms <= now_ms) {
            let Row { order_id, sale, user, held, status, .. } = self.unwritten.remove(0);
            let now = clock::format_ms(clock::unix_now_ms());
            self.sql(
                "INSERT INTO floodgate_orders VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6)",
                &[&order_id, &sale, &user, &held, &status, &now],
            );
            self.sql("UPDATE floodgate_sales SET sold = sold + ?1 WHERE sale_id = ?2", &[&held, &sale]);
        }
    }

    fn sql(&self, sql: &str, parameters: &[&dyn rusqlite::ToSql]) {
        self.database.execute(sql, parameters).expect("sql");
    }
}

impl Sale {
    fn new(definition: Value, total: i64, taken: i64) -> Option<Self> {
        let opens_ms = clock::parse_ms(definition["starts_at"].as_str()?)?;
        Some(Self { definition, total, opens_ms, taken })
    }
}

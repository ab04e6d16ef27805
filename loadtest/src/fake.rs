//! A tiny flash sale for tests: the public interface over one mutex and a SQLite file, with faults to plant.
//!
//! The spike is played against it as against a real target, and must find each fault.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
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
    /// Asks image questions.
    AsksImages,
}

struct State {
    fault: Fault,
    definition: Value,
    total: i64,
    opens_ms: u64,
    orders: BTreeMap<String, String>,
    presses: u64,
    database: rusqlite::Connection,
}

/// A running fake; its files go with it.
pub(crate) struct Fake {
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Fake {
    pub(crate) async fn start(fault: Fault) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let database = rusqlite::Connection::open(directory.path().join("orders.db")).expect("open");
        let schema = "PRAGMA journal_mode = WAL;
            CREATE TABLE floodgate_sales (sale_id TEXT PRIMARY KEY, total INTEGER, sold INTEGER);
            CREATE TABLE floodgate_orders (order_id TEXT, sale_id TEXT, user_id TEXT, quantity INTEGER, units_held INTEGER,
                status TEXT, created_at TEXT)";
        database.execute_batch(schema).expect("schema");
        for (name, secret) in [("secret", "s3cret\n"), ("token", "t0ken\n")] {
            std::fs::write(directory.path().join(name), secret).expect("write");
        }
        let state = Arc::new(Mutex::new(State {
            fault,
            definition: Value::Null,
            total: 0,
            opens_ms: 0,
            orders: BTreeMap::new(),
            presses: 0,
            database,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, state.clone()));
            }
        });
        Self { address, directory }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
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
    fn answer(&mut self, request: &Request) -> Reply {
        let path: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET", ["api", "v1", "time"]) => {
                Some((200, json!({ "now": clock::format_ms(clock::unix_now_ms()) })))
            }
            ("GET", ["api", "v1", "sales", _]) => Some((200, self.definition.clone())),
            ("PUT", ["admin", "v1", "sales"]) => self.publish(&request.body),
            ("GET", ["admin", "v1", "sales", _]) => Some((200, self.figures())),
            ("POST", ["api", "v1", "sales", _, "challenges"]) => {
                Some((201, json!({ "challenge": "c", "kind": "image", "image_url": "/x" })))
            }
            ("POST", ["api", "v1", "sales", _, "passes"]) if self.fault == Fault::AsksImages => {
                refuse(400, "bad-request")
            }
            ("POST", ["api", "v1", "sales", _, "passes"]) => {
                let user = request.user()?;
                Some((
                    201,
                    json!({ "pass": format!("pass.{user}"), "order_id": format!("O-{user}"), "expires_at": "" }),
                ))
            }
            ("POST", ["api", "v1", "sales", _, "orders"]) => self.press(request),
            ("GET", ["api", "v1", "orders", order_id]) => match self.orders.get(*order_id) {
                Some(status) => Some((200, json!({ "order_id": order_id, "status": status }))),
                None => refuse(404, "unknown-order"),
            },
            _ => refuse(404, "unknown"),
        }
    }

    fn publish(&mut self, definition: &Value) -> Reply {
        self.definition = definition.clone();
        self.total = definition["total"].as_i64()?;
        self.opens_ms = clock::parse_ms(definition["starts_at"].as_str()?)?;
        let sale = definition["id"].as_str()?;
        self.sql("INSERT INTO floodgate_sales VALUES (?1, ?2, 0)", &[&sale, &self.total]);
        Some((201, json!({})))
    }

    fn figures(&self) -> Value {
        let sold: i64 =
            self.database.query_row("SELECT sold FROM floodgate_sales", [], |row| row.get(0)).unwrap_or(0);
        json!({ "total": self.total, "remaining": self.total - sold, "pending": 0, "confirmed": sold, "sold": sold,
            "backlog": 0, "at_rest": true, "epoch": 1, "paused_by": null })
    }

    fn press(&mut self, request: &Request) -> Reply {
        let user = request.headers.get("floodgate-pass")?.strip_prefix("pass.")?.to_owned();
        let order_id = format!("O-{user}");
        // The pass of this fake is no MAC: a forged one names a user that no crowd has.
        if user.split('-').count() != 4 || user.contains(['A', 'B']) {
            return refuse(401, "pass-invalid");
        }
        if clock::unix_now_ms() < self.opens_ms {
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
        let sold = self.orders.len() as i64;
        let for_sale = match self.fault {
            Fault::Oversells => self.total + 3,
            Fault::StopsEarly => self.total - 3,
            _ => self.total,
        };
        if sold >= for_sale {
            return refuse(410, "sold-out");
        }
        self.orders.insert(order_id.clone(), "unpaid".into());
        let special = sold == 5;
        let (held, status) =
            if special && self.fault == Fault::Rejects { (0, "rejected") } else { (1, "unpaid") };
        if !(special && self.fault == Fault::LosesARow) {
            let sale = self.definition["id"].as_str()?.to_owned();
            let now = clock::format_ms(clock::unix_now_ms());
            self.sql(
                "INSERT INTO floodgate_orders VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6)",
                &[&order_id, &sale, &user, &held, &status, &now],
            );
            self.sql("UPDATE floodgate_sales SET sold = sold + ?1", &[&held]);
        }
        match self.fault {
            Fault::SellsSilently if special => {
                self.orders.remove(&order_id);
                self.orders.insert("somebody".into(), "unpaid".into());
                refuse(410, "sold-out")
            }
            Fault::HangsUp if self.presses.is_multiple_of(7) => None,
            _ => Some((202, json!({ "order_id": order_id, "status": "queued" }))),
        }
    }

    fn sql(&self, sql: &str, parameters: &[&dyn rusqlite::ToSql]) {
        self.database.execute(sql, parameters).expect("sql");
    }
}

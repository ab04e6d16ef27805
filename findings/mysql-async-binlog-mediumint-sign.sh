#!/usr/bin/env bash
# Versions: mysql_async 0.37.1 (crates.io), its binlog stream read from MariaDB 10.11.19 (Debian 12), binlog_format = ROW, binlog_row_metadata = FULL.
#
# Behaviour: a negative value of a signed MEDIUMINT column arrives as a positive one, 2^24 too large. TINYINT, SMALLINT, INT and
#   BIGINT of the same row arrive with their sign, and the same driver reads the same column right by SELECT.
# What most expect: all five integer types keep their sign, above all where the table map names which columns are unsigned.
# What it costs: a change feed sends 16777209 for −7, and nothing raises.
#
# Output seen:
#   by SELECT:     [-7, -7, -7, -7, -7]
#   by the binlog: [-7, -7, 16777209, -7, -7]
#
# Needs apt-get, dpkg-deb and cargo; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
version=1:10.11.19-0+deb12u1
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$work"' EXIT
cd "$work"
apt-get download -q "mariadb-server-core=$version" "mariadb-client-core=$version" libmariadb3 libaio1 libnuma1 liburing2 \
  libncurses6 libedit2 libbsd0 libmd0 >download.log 2>&1 || { cat download.log >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
"$work/root/usr/bin/mariadb-install-db" --no-defaults --basedir="$work/root/usr" --datadir="$work/data" --user="$(id -un)" \
  --auth-root-authentication-method=normal --skip-test-db >install.log 2>&1 || { cat install.log >&2; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/root/usr/sbin/mariadbd" --no-defaults --basedir="$work/root/usr" --lc-messages-dir="$work/root/usr/share/mysql" \
  --datadir="$work/data" --user="$(id -un)" --bind-address=127.0.0.1 --port="$port" --socket="$work/socket" \
  --log-bin=binlog --server-id=1 --binlog-format=ROW --binlog-row-metadata=FULL >server.log 2>&1 &
server=$!
sql() { "$work/root/usr/bin/mariadb" --no-defaults --socket="$work/socket" -uroot -N -B "$@" 2>&1; }
for _ in $(seq 100); do sql -e 'SELECT 1' >/dev/null && break; sleep 0.2; done
sql -e "CREATE USER f@127.0.0.1; GRANT ALL ON *.* TO f@127.0.0.1; CREATE DATABASE f;
  CREATE TABLE f.t (a TINYINT, b SMALLINT, c MEDIUMINT, d INT, e BIGINT); RESET MASTER; INSERT INTO f.t VALUES (-7, -7, -7, -7, -7)"

mkdir -p reader/src
cat >reader/Cargo.toml <<'TOML'
[package]
name = "reader"
version = "0.0.0"
edition = "2021"
[dependencies]
mysql_async = { version = "=0.37.1", default-features = false, features = ["minimal-rust", "binlog"] }
tokio = { version = "1", features = ["macros", "rt"] }
futures-util = { version = "0.3", default-features = false }
TOML
cat >reader/src/main.rs <<'RUST'
use futures_util::StreamExt;
use mysql_async::{binlog::{events::{EventData, RowsEventData}, value::BinlogValue}, prelude::Queryable, BinlogStreamRequest, Conn, Row};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let url = std::env::args().nth(1).expect("an address");
    let mut connection = Conn::from_url(&url).await.expect("connected");
    let row: Row = connection.query_first("SELECT * FROM f.t").await.expect("selected").expect("a row");
    let selected: Vec<i64> = (0..5).map(|at| row.get(at).expect("a number")).collect();
    println!("by SELECT:     {selected:?}");
    let request = BinlogStreamRequest::new(77).with_non_blocking();
    let mut stream = connection.get_binlog_stream(request).await.expect("a stream");
    while let Some(event) = stream.next().await {
        let event = event.expect("an event");
        // MariaDB writes rows as events of version 1.
        if let Ok(Some(EventData::RowsEvent(RowsEventData::WriteRowsEventV1(rows)))) = event.read_data() {
            let map = stream.get_tme(rows.table_id()).expect("its table map");
            for row in rows.rows(map) {
                let (_, after) = row.expect("a row");
                let after = after.expect("the row as written");
                let read: Vec<i64> = (0..5)
                    .map(|at| match after.as_ref(at) {
                        Some(BinlogValue::Value(mysql_async::Value::Int(number))) => *number,
                        Some(BinlogValue::Value(mysql_async::Value::UInt(number))) => *number as i64,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                println!("by the binlog: {read:?}");
            }
        }
    }
}
RUST
(cd reader && cargo build -q 2>&1)
seen=$(reader/target/debug/reader "mysql://f@127.0.0.1:$port/f")
echo "$seen"
[ "$seen" = "$(printf 'by SELECT:     [-7, -7, -7, -7, -7]\nby the binlog: [-7, -7, 16777209, -7, -7]')" ] ||
  { echo 'the behaviour has changed' >&2; exit 1; }

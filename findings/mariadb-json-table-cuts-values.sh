#!/usr/bin/env bash
# Versions: MariaDB 10.11.19 (Debian 12), JSON_TABLE with ERROR ON ERROR, sql_mode with STRICT_TRANS_TABLES (the server's own default).
#
# Behaviour: a value that does not fit its column is cut (text), clamped (integers) or rounded (decimals), and the row is
#   delivered. ERROR ON ERROR raises nothing. INSERT … SELECT from it stores the cut value, although strict mode refuses the
#   same value when it is inserted directly.
# What most expect: ERROR ON ERROR raises, and if it did not, the strict insert would ("Data too long for column").
# What it costs: a batch that travels to the server as one JSON document can store other values than were sent, and only
#   SHOW WARNINGS knows. Compare lengths before, or read the warnings of every such statement.
#
# Output seen:
#   expected an error, got: abc 127
#   expected an error, stored: abc
#   the same value inserted directly: ERROR 1406 (22001) at line 1: Data too long for column 'c' at row 1
#
# Needs apt-get and dpkg-deb; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
version=1:10.11.19-0+deb12u1
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$work"' EXIT
cd "$work"
# The libraries that the server and its client need beside what every Debian has.
apt-get download -q "mariadb-server-core=$version" "mariadb-client-core=$version" libmariadb3 libaio1 libnuma1 liburing2 \
  libncurses6 libedit2 libbsd0 libmd0 >download.log 2>&1 || { cat download.log >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
share=$work/root/usr/share/mysql
"$work/root/usr/bin/mariadb-install-db" --no-defaults --basedir="$work/root/usr" --datadir="$work/data" --user="$(id -un)" \
  --auth-root-authentication-method=normal --skip-test-db >install.log 2>&1 || { cat install.log >&2; exit 1; }
"$work/root/usr/sbin/mariadbd" --no-defaults --basedir="$work/root/usr" --lc-messages-dir="$share" --datadir="$work/data" \
  --user="$(id -un)" --skip-networking --socket="$work/socket" >server.log 2>&1 &
server=$!
sql() { "$work/root/usr/bin/mariadb" --no-defaults --socket="$work/socket" -uroot -N -B "$@" 2>&1; }
for _ in $(seq 100); do sql -e 'SELECT 1' >/dev/null && break; sleep 0.2; done
sql -e 'SELECT VERSION(), @@sql_mode'

table="JSON_TABLE('[{\"c\": \"abcdef\", \"n\": 300}]', '\$[*]'
  COLUMNS (c VARCHAR(3) PATH '\$.c' ERROR ON ERROR, n TINYINT PATH '\$.n' ERROR ON ERROR)) AS t"
read_back=$(sql -e "SELECT * FROM $table" | tr '\t' ' ') || true
echo "expected an error, got: $read_back"
sql -e 'CREATE DATABASE f; CREATE TABLE f.t (c VARCHAR(3))'
sql f -e "INSERT INTO t SELECT c FROM $table" || true
stored=$(sql f -e 'SELECT c FROM t')
echo "expected an error, stored: $stored"
direct=$(sql f -e "INSERT INTO t VALUES ('abcdef')" | tail -n 1) || true
echo "the same value inserted directly: $direct"
[ "$read_back" = 'abc 127' ] && [ "$stored" = abc ] && [[ $direct == *1406* ]] || { echo 'the behaviour has changed' >&2; exit 1; }

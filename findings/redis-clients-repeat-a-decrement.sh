#!/usr/bin/env bash
# Versions: redis-py 8.1.0 (PyPI) and go-redis 9.23.0 (Go modules), default options; Redis 7.0.15 (Debian 12).
#
# Behaviour: Redis stands still for 7 s, longer than the clients' read timeout of 5 s. One DECRBY is sent, times out unanswered, is
#   sent again by the client itself on a new connection, and both run. The call returns without an error, two units poorer.
# What most expect: a command that may have run already is not repeated unless it is a read; the caller gets the timeout
#   and decides. The answer of a call that did not fail stands for one decrement.
# What it costs: units of stock, quietly: 99 orders for 100 units, and no error or log to find. Counters need a script that knows the
#   order's id, or clients with Retry(NoBackoff(), 0) and MaxRetries: -1 (0 means the default, 3).
#
# Output seen:
#   redis-py: 100 minus 1 gave 98, error None
#   go-redis: 100 minus 1 gave 98, error <nil>
#
# Needs apt-get, dpkg-deb, python3 with venv, and go; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
version=5:7.0.15-1~deb12u10
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$work"' EXIT
cd "$work"
apt-get download -q "redis-server=$version" "redis-tools=$version" libjemalloc2 liblzf1 libatomic1 >download.log 2>&1 ||
  { cat download.log >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check redis==8.1.0
cat >call.py <<'PYTHON'
import socket, sys, time
import redis
port = int(sys.argv[1])
client = redis.Redis(port=port)
client.set("stock", 100)
stall = socket.create_connection(("127.0.0.1", port))
stall.sendall(b"DEBUG SLEEP 7\r\n")
time.sleep(0.2)
left, error = None, None
try:
    left = client.decrby("stock", 1)
except redis.RedisError as raised:
    error = raised
print(f"redis-py: 100 minus 1 gave {left}, error {error}")
PYTHON
mkdir caller
cat >caller/go.mod <<'MOD'
module caller

go 1.24

require github.com/redis/go-redis/v9 v9.23.0
MOD
cat >caller/main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

func main() {
	address := "127.0.0.1:" + os.Args[1]
	client := redis.NewClient(&redis.Options{Addr: address})
	client.Set(context.Background(), "stock", 100, 0)
	stall, err := net.Dial("tcp", address)
	if err != nil {
		panic(err)
	}
	fmt.Fprint(stall, "DEBUG SLEEP 7\r\n")
	time.Sleep(200 * time.Millisecond)
	left, err := client.DecrBy(context.Background(), "stock", 1).Result()
	fmt.Printf("go-redis: 100 minus 1 gave %d, error %v\n", left, err)
}
GO
(cd caller && GOMODCACHE=$work/modules GOFLAGS='-mod=mod -modcacherw' go build -o call . 2>build.log) ||
  { cat caller/build.log >&2; exit 1; }

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/root/usr/bin/redis-server" --port "$port" --bind 127.0.0.1 --enable-debug-command local --save '' --dir "$work" >server.log 2>&1 &
server=$!
for _ in $(seq 50); do "$work/root/usr/bin/redis-cli" -p "$port" ping >/dev/null 2>&1 && break; sleep 0.1; done
seen=$(venv/bin/python call.py "$port" && caller/call "$port")
echo "$seen"
[ "$seen" = 'redis-py: 100 minus 1 gave 98, error None
go-redis: 100 minus 1 gave 98, error <nil>' ] || { echo 'the behaviour has changed' >&2; exit 1; }

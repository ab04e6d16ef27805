#!/usr/bin/env bash
# Versions: nginx 1.22.1 with lua-nginx-module 0.10.23 and lua-resty-core 0.1.25 (Debian 12).
#
# Behaviour: a time to live between 0 and 1 ms is cut to 0 ms, and 0 means "never expires". `deadline - ngx.now()` with the deadline
#   exactly 1 ms ahead is mostly a little under 0.001 in floating point, so the entry stays until something deletes it.
#   expire and the init_ttl of incr do the same; a time to live below zero raises.
# What most expect: the shorter the time to live, the shorter the life; rounding up to 1 ms at worst.
# What it costs: a lease or flag that is renewed with the time it has left becomes permanent when a renewal happens to fall into the
#   last millisecond: "sold out", or a rate limit's refusal, for ever. Use math.max(ttl, 0.001), or skip the write.
#
# Output seen:
#   gone after 2 ms: true
#   set 1 ms before the end, kept 300 ms later: 696 of 1000
#   expire() with 0.5 ms left: kept for ever
#   incr() with an init_ttl of 0.5 ms: kept for ever
#
# Needs apt-get and dpkg-deb; installs nothing on the system. Ends with 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$work"' EXIT
cd "$work"
apt-get download -q nginx=1.22.1-9+deb12u11 libnginx-mod-http-ndk=1:0.3.2-3 libnginx-mod-http-lua=1:0.10.23-1+deb12u1 \
  lua-resty-core=0.1.25-1 lua-resty-lrucache=0.13-10 libluajit2-5.1-2=2.1-20230119-1 libpcre3 >download.log 2>&1 ||
  { cat download.log >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" root; done
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
mkdir logs temp
cat >nginx.conf <<CONF
load_module $work/root/usr/lib/nginx/modules/ndk_http_module.so;
load_module $work/root/usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off;
master_process off;
pid logs/pid;
error_log logs/error.log;
events {}
http {
  access_log off;
  client_body_temp_path temp;
  proxy_temp_path temp;
  fastcgi_temp_path temp;
  uwsgi_temp_path temp;
  scgi_temp_path temp;
  lua_package_path "$work/root/usr/share/lua/5.1/?.lua;;";
  lua_shared_dict leases 4m;
  server {
    listen unix:$work/socket;
    location / {
      content_by_lua_block {
        local leases = ngx.shared.leases
        leases:set("two", true, 0.002)
        -- A second's worth of renewals, each one millisecond before its lease ends: times as ngx.now() gives them.
        for at = 0, 999 do
          local now, deadline = 1794412800 + at / 1000, 1794412800 + (at + 1) / 1000
          leases:set("lease" .. at, true, deadline - now)
        end
        leases:set("renewed", true, 5)
        leases:expire("renewed", 0.0005)
        leases:incr("counted", 1, 0, 0.0005)
        ngx.sleep(0.3)
        local kept = 0
        for at = 0, 999 do
          kept = kept + (leases:get("lease" .. at) and 1 or 0)
        end
        local function fate(key)
          return not leases:get(key) and "gone" or leases:ttl(key) == 0 and "kept for ever" or "kept"
        end
        ngx.say("gone after 2 ms: ", leases:get("two") == nil)
        ngx.say("set 1 ms before the end, kept 300 ms later: ", kept, " of 1000")
        ngx.say("expire() with 0.5 ms left: ", fate("renewed"))
        ngx.say("incr() with an init_ttl of 0.5 ms: ", fate("counted"))
      }
    }
  }
}
CONF
"$work/root/usr/sbin/nginx" -p "$work/" -c nginx.conf >server.log 2>&1 &
server=$!
for _ in $(seq 50); do [ -S socket ] && break; sleep 0.1; done
seen=$(python3 - <<'PYTHON'
import http.client, socket
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("socket")
connection.request("GET", "/")
print(connection.getresponse().read().decode(), end="")
PYTHON
)
echo "$seen"
[ "$seen" = 'gone after 2 ms: true
set 1 ms before the end, kept 300 ms later: 696 of 1000
expire() with 0.5 ms left: kept for ever
incr() with an init_ttl of 0.5 ms: kept for ever' ] || { cat logs/error.log server.log >&2; echo 'the behaviour has changed' >&2; exit 1; }

//! A refused purchase: what it costs to say "sold out" to the same request in as many bytes.

use std::time::Duration;

use crate::crowd::{Crowd, Run};
use crate::sides::{Floodgate, Side, refusing_nginx};
use testbed::AppendFsync;

/// Refusals of a side in each turn.
const PER_TURN: usize = 200_000;
/// After one more that warms up.
const TURNS: usize = 4;

/// Something that refuses.
struct Server<'a> {
    name: &'static str,
    port: u16,
    cpu: Box<dyn Fn() -> Duration + 'a>,
}

/// Measures and prints.
pub(crate) fn table() {
    println!(
        "processor time of the server, us a refused purchase; {TURNS} times {PER_TURN} a side, in turns, the crowd on the same \
         machine"
    );
    let mut floodgate = Floodgate::start(AppendFsync::Everysec);
    let (request, says) = floodgate.sell_out();
    let headers = "default_type application/problem+json;\nadd_header Cache-Control no-store always;";
    let plain = refusing_nginx("", &format!("{headers}\nreturn 410 '{says}';"));
    let lua = refusing_nginx(
        "lua_shared_dict sold_out 1m;\ninit_by_lua_block { ngx.shared.sold_out:set('one', true) }",
        &format!(
            "access_by_lua_block {{\nif ngx.shared.sold_out:get('one') then\nngx.status = 410\n\
             ngx.header['Content-Type'] = 'application/problem+json'\nngx.header['Cache-Control'] = 'no-store'\n\
             ngx.header['Content-Length'] = {}\nngx.print('{says}')\nreturn ngx.exit(410)\nend\n}}",
            says.len()
        ),
    );
    let servers = [
        Server {
            name: "Floodgate",
            port: floodgate.port(),
            cpu: Box::new(|| {
                let [gateway, _] = floodgate.cpu();
                gateway
            }),
        },
        Server { name: "nginx, return 410", port: plain.port(), cpu: Box::new(|| plain.cpu()) },
        Server { name: "nginx + Lua, a flag", port: lua.port(), cpu: Box::new(|| lua.cpu()) },
    ];
    for connections in [64, 512] {
        measure(&servers, &request, connections);
    }
}

fn measure(servers: &[Server<'_>], request: &[u8], connections: usize) {
    let mut crowds: Vec<_> = servers.iter().map(|server| Crowd::connect(server.port, connections)).collect();
    let mut used = vec![(Duration::ZERO, Duration::ZERO); servers.len()];
    for turn in 0..=TURNS {
        for ((server, crowd), used) in servers.iter().zip(&mut crowds).zip(&mut used) {
            let before = (server.cpu)();
            let Run { elapsed, .. } = crowd.press(vec![request.to_vec()], PER_TURN, 410);
            if turn > 0 {
                *used = (used.0 + (server.cpu)() - before, used.1 + elapsed);
            }
        }
    }
    let count = (PER_TURN * TURNS) as f64;
    let ours = used[0].0;
    for (server, (cpu, elapsed)) in servers.iter().zip(used) {
        println!(
            "{connections:3} connections:  {:20} {:5.2}  {:7.0}/s   Floodgate / it: {:.2} x",
            server.name,
            cpu.as_secs_f64() * 1e6 / count,
            count / elapsed.as_secs_f64(),
            ours.as_secs_f64() / cpu.as_secs_f64(),
        );
    }
}

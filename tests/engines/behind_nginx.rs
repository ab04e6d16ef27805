//! A gateway behind an nginx that was told where it is and nothing else.

use std::time::Duration;

use testbed::{Client, Nginx, Port};

use crate::place::deploy;

#[test]
fn a_bare_proxy_gives_nobody_a_token_and_passes_on_what_is_said() {
    let deployment = deploy(1, 1, "s", 2);
    let gateway = deployment.gateways()[0].buyers_port();
    let nginx = Nginx::start_at(Port::claim().expect("a free port"), |port| {
        format!(
            "server {{\nlisten 127.0.0.1:{port};\nclient_max_body_size 8m;\nlocation / {{ proxy_pass http://127.0.0.1:{gateway}; }}\n}}"
        )
    })
    .expect("nginx");
    let call = |port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str| {
        let mut headers = headers.to_vec();
        headers.push(("Content-Type", "application/json"));
        Client::new(port, Duration::from_secs(20)).request(method, path, &headers, body).expect("an answer")
    };
    let login = |port| call(port, "POST", "/api/v1/demo/login", &[], r#"{"user":"eve"}"#);
    assert_eq!(login(gateway).status, 200, "from this machine itself");
    let refused = login(nginx.port());
    assert_eq!(refused.status, 403, "{refused:?}");

    let cookie = format!("shop={}", "c".repeat(2_995));
    let cookies = [("Cookie", &*cookie); 3];
    let time = call(nginx.port(), "GET", "/api/v1/time", &cookies, "");
    assert_eq!(time.status, 200, "{time:?}");

    let body = " ".repeat(2 << 20);
    for (path, status) in [("/api/v1/sales/s/orders", 413), ("/api/v1/nothing", 404)] {
        let answer = call(nginx.port(), "POST", path, &[], &body);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains("floodgate.invalid/problems/"), "{answer:?}");
    }
}

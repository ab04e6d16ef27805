//! What the READMEs tell a newcomer to type, typed.

use std::process::{Command, Stdio};

use crate::server::Site;

const READMES: [&str; 2] = [include_str!("../../README.md"), include_str!("../../README.zh-CN.md")];

/// The lines that write `shop.toml`.
fn lines_of_the_configuration(readme: &str) -> &str {
    let mut blocks = readme.split("```sh\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
    blocks.find(|block| block.contains("cat > shop.toml")).expect("README writes shop.toml")
}

#[test]
fn the_example_of_both_readmes_can_be_published_and_lies_ahead() {
    for readme in READMES {
        let site = Site::new("");
        let shell = Command::new("sh")
            .args(["-ec", lines_of_the_configuration(readme)])
            .current_dir(site.path())
            .stdin(Stdio::null())
            .status();
        assert!(shell.expect("a shell").success());
        let mut with_it = Command::new(env!("CARGO_BIN_EXE_floodgate"));
        let printed =
            with_it.current_dir(site.path()).args(["--config", "shop.toml", "--print-config"]).output();
        let printed = printed.expect("it runs");
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));

        let _server = site.start();
        let published = site.run(&["sales", "publish", "shop.toml"]);
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
        let listed = site.call("GET", "/api/v1/sales", &[], "").json();
        let sale = &listed["sales"][0];
        let opens: stock::Timestamp = serde_json::from_value(sale["starts_at"].clone()).expect("a time");
        let now: stock::Timestamp =
            serde_json::from_value(site.call("GET", "/api/v1/time", &[], "").json()["now"].clone())
                .expect("a time");
        assert!(opens > now, "{sale} lies behind {now}");
        assert_eq!((&sale["price"], &sale["currency_digits"]), (&206_640.into(), &2.into()));
    }
}

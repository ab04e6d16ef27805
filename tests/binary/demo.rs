//! The demo login with a configuration file: it shows.

use crate::server::Site;

#[test]
fn a_demo_login_in_a_configuration_file_shows_and_stays_on_this_machine() {
    let site = Site::new("");
    let server = site.start();
    // It greets when it is ready already.
    let mut log = site.log();
    for _ in 0..3_000 {
        if log.contains("sqlite:") && log.contains("any user's token") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        log = site.log();
    }
    let greeting: Vec<&str> =
        log.lines().filter(|line| line.contains("http://") || line.contains("sqlite:")).collect();
    assert!(greeting.len() > 2 && log.contains("any user's token"), "{log}");
    for line in greeting {
        assert!(line.contains("auth.demo = true"), "{line:?} does not say it");
    }
    drop(server);

    let mut command = site.command(&[]);
    let open = command.env("FLOODGATE_GATEWAY__LISTEN", "0.0.0.0:0").output().expect("it runs");
    let said = String::from_utf8_lossy(&open.stderr);
    assert_eq!(open.status.code(), Some(2), "{said}");
    assert!(said.contains("auth.demo") && said.contains("gateway.listen = \"0.0.0.0:0\""), "{said}");
}

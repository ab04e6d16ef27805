//! A few buyers beside the crowd, in a sale of their own, who find out when units are sold again. They must not buy from the
//! crowd's sale: every row there is the crowd's.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::{Client, Error};

use super::production::{Production, SALE};

/// One could not press often enough: there is a limit a user.
const BUYERS: usize = 10;
const PRESS_EVERY: Duration = Duration::from_millis(10);
/// Whoever waits longer does not call it sold.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
const ADMISSION_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Buyers with their passes in hand.
pub(super) struct Buyers {
    client: Client,
    passes: Vec<String>,
}

impl Buyers {
    /// Through nginx, as everybody.
    pub(super) fn admit(production: &Production) -> Result<Self, Error> {
        let port = production.nginx.port();
        let mut client = Client::new(port, ADMISSION_WITHIN);
        let passes = (0..BUYERS).map(|number| {
            let user = format!("{{\"user\":\"buyer-{number}\"}}");
            let token = field(&mut client, "/api/v1/demo/login", "", &user, "token")?;
            field(&mut client, &format!("/api/v1/sales/{SALE}/passes"), &token, "{}", "pass")
        });
        Ok(Self { passes: passes.collect::<Result<_, _>>()?, client: Client::new(port, ANSWER_WITHIN) })
    }

    /// They press in turn until one has a 202: how long after `struck` that was. None if nobody ever has.
    pub(super) fn press(mut self, struck: Instant) -> Option<Duration> {
        let path = format!("/api/v1/sales/{SALE}/orders");
        for pass in self.passes.iter().cycle() {
            let headers = [("Floodgate-Pass", &**pass), JSON];
            let answer = self.client.request("POST", &path, &headers, "{}");
            if answer.is_ok_and(|answer| answer.status == 202) {
                return Some(struck.elapsed());
            }
            if struck.elapsed() > PATIENCE {
                return None;
            }
            thread::sleep(PRESS_EVERY);
        }
        None
    }
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn field(client: &mut Client, path: &str, token: &str, body: &str, name: &str) -> Result<String, Error> {
    let bearer = format!("Bearer {token}");
    let headers = [JSON, ("Authorization", bearer.as_str())];
    let headers = if token.is_empty() { &headers[..1] } else { &headers[..] };
    let answer = client
        .request("POST", path, headers, body)
        .map_err(|error| Error::new(format!("{path}: {error}")))?;
    let value = serde_json::from_str::<Value>(&answer.body).ok();
    value
        .and_then(|value| value[name].as_str().map(str::to_owned))
        .ok_or_else(|| Error::new(format!("{path}: {} {}", answer.status, answer.body)))
}

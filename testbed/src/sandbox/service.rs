//! The shop's own service beside the sandbox: answers `payment.refund_url` (`/refund`) and `payment.check_url`
//! (`/check`) from the sandbox's book, in whatever mood it is. Believes every caller; it is on loopback, and moves no
//! money.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::Sandbox;

/// Longest wait for a caller, and for one to take its answer.
const WITHIN: Duration = Duration::from_secs(5);
/// Largest body that is read, bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// How the service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// It does what it is asked, and answers 500.
    FailsAfterwards,
    /// It hangs up on everybody, and does nothing.
    Down,
}

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct Service {
    port: u16,
    mood: Arc<AtomicU8>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sandbox {
    /// Serves refunds and checks on a free port of loopback, one call at a time.
    ///
    /// # Errors
    /// No port.
    pub fn serve(self: &Arc<Self>) -> io::Result<Service> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (mood, ends) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (sandbox, mood, ends) = (self.clone(), mood.clone(), ends.clone());
            move || {
                for stream in listener.incoming() {
                    // Lone flags that guard nothing else: relaxed serves, here and below.
                    if ends.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Ok(stream) = stream {
                        // A caller that breaks off asks again.
                        let _ = sandbox.answer(stream, mood.load(Ordering::Relaxed));
                    }
                }
            }
        });
        Ok(Service { port, mood, ends, thread: Some(thread) })
    }

    fn answer(&self, stream: TcpStream, mood: u8) -> io::Result<()> {
        if mood == Mood::Down as u8 {
            return Ok(());
        }
        stream.set_read_timeout(Some(WITHIN))?;
        stream.set_write_timeout(Some(WITHIN))?;
        let mut caller = BufReader::new(stream);
        let (path, body) = call(&mut caller)?;
        let (mut status, said) = match path.as_str() {
            "/refund" => self.asked_to_refund(&body),
            "/check" => (200, self.asked_whether_paid(&body)),
            _ => (404, json!({})),
        };
        if mood == Mood::FailsAfterwards as u8 {
            status = 500;
        }
        let said = said.to_string();
        let answer = format!(
            "HTTP/1.1 {status} Sandbox\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{said}",
            said.len()
        );
        caller.get_mut().write_all(answer.as_bytes())
    }

    fn asked_to_refund(&self, body: &Value) -> (u16, Value) {
        let text = |name: &str| body[name].as_str().unwrap_or_default();
        let (id, payment) = (text("refund_id"), text("payment_id"));
        if self.refund(id, payment, body["amount"].as_u64().unwrap_or(u64::MAX)) {
            (200, json!({"state": "succeeded", "provider_refund_id": format!("sandbox-{id}")}))
        } else {
            (422, json!({"reason": "no such payment, or not so much is left of it"}))
        }
    }

    fn asked_whether_paid(&self, body: &Value) -> Value {
        let order = body["order_id"].as_str().unwrap_or_default();
        let names = |reference: &str| reference.split('-').next() == Some(order);
        match self.payments().into_iter().find(|payment| names(&payment.reference)) {
            Some(payment) => json!({
                "state": "paid", "payment_id": payment.id, "amount": payment.amount, "currency": payment.currency,
                "paid_at": payment.at,
            }),
            None => json!({"state": "unpaid"}),
        }
    }
}

impl Service {
    /// On loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the mood, from the next call on.
    pub fn set_mood(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes it.
        let _ = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)), WITHIN);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The path of one call, and its body.
fn call(caller: &mut BufReader<TcpStream>) -> io::Result<(String, Value)> {
    let mut line = String::new();
    caller.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        line.clear();
        if caller.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(usize::MAX);
        }
    }
    if length > BODY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    caller.read_exact(&mut body)?;
    Ok((path, serde_json::from_slice(&body).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Client;
    use crate::sandbox::How;

    #[test]
    fn it_answers_from_the_book_in_whatever_mood() {
        let sandbox = Arc::new(Sandbox::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 1));
        assert!(
            sandbox.pay("bank", "ORDER-2", (500, "CNY"), How::Lost).is_ok_and(|answers| answers.is_empty())
        );
        let service = sandbox.serve().expect("a port");
        let ask = |path: &str, body: &Value| {
            Client::new(service.port(), WITHIN).request("POST", path, &[], &body.to_string())
        };
        let refund = |id: &str, amount: u64| {
            ask("/refund", &json!({"refund_id": id, "payment_id": "bank-000001", "amount": amount}))
        };
        let paid = ask("/check", &json!({"order_id": "ORDER"})).expect("an answer");
        assert!(paid.status == 200 && paid.body.contains("bank-000001"), "{}", paid.body);
        let unpaid = ask("/check", &json!({"order_id": "OTHER"})).expect("an answer");
        assert!(unpaid.body.contains("unpaid"), "{}", unpaid.body);

        service.set_mood(Mood::Down);
        assert!(refund("r", 200).is_err());
        service.set_mood(Mood::FailsAfterwards);
        assert_eq!(refund("r", 200).expect("an answer").status, 500);
        service.set_mood(Mood::Well);
        for _ in 0..2 {
            assert_eq!(refund("r", 200).expect("an answer").status, 200, "the same refund");
        }
        assert_eq!(refund("s", 301).expect("an answer").status, 422);
        assert_eq!(sandbox.statement().lines().count(), 3, "once");
    }
}

//! A body for what hyper refuses by itself: heads that are too long or no HTTP. It answers them before anything of ours sees them,
//! with a status and nothing else, and nobody can tell from that what to change.

use std::io::Write;

use hyper::header::HeaderValue;

use crate::http::body::Body;
use crate::http::problem::Problem;

/// hyper's own answer with our words behind it; `None` if `head` is none of those.
pub(super) fn with_words(head: &[u8], head_bytes_max: usize, with_body: bool) -> Option<Vec<u8>> {
    let status = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    let refusal = match status {
        b"400" => Problem::BadRequest.because("the request's head is not HTTP/1.1"),
        b"414" => Problem::UriTooLong.response(),
        b"431" => Problem::HeadTooLarge.because(&format!(
            "a request's head, cookies included, may have gateway.header_bytes_max = {head_bytes_max} bytes and 100 lines"
        )),
        _ => return None,
    };
    let lines = head.strip_suffix(b"\r\n\r\n")?.split(|byte| *byte == b'\n');
    let mut answer = Vec::with_capacity(1_024);
    for line in lines.map(<[u8]>::trim_ascii_end) {
        if !line.to_ascii_lowercase().starts_with(b"content-length:") {
            answer.extend_from_slice(line);
            answer.extend_from_slice(b"\r\n");
        }
    }
    let (parts, body) = refusal.into_parts();
    let Body::Whole(Some(body)) = body else { return None };
    for (name, value) in &parts.headers {
        line(&mut answer, name.as_str(), value);
    }
    line(&mut answer, "content-length", &HeaderValue::from(body.len()));
    answer.extend_from_slice(b"\r\n");
    if with_body {
        answer.extend_from_slice(&body);
    }
    Some(answer)
}

fn line(answer: &mut Vec<u8>, name: &str, value: &HeaderValue) {
    // A Vec takes everything.
    let _ = write!(answer, "{name}: ");
    answer.extend_from_slice(value.as_bytes());
    answer.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] =
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\nContent-Length: 0\r\ndate: now\r\n\r\n";

    #[test]
    fn a_refused_head_hears_why() {
        let text = String::from_utf8(with_words(HEAD, 36_864, true).expect("a refusal")).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        for line in ["HTTP/1.1 431 ", "connection: close\r\n", "content-type: application/problem+json\r\n"] {
            assert!(head.contains(line), "{line:?} is not in {head:?}");
        }
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head:?}");
        assert!(body.contains("36864") && body.contains("/head-too-large"), "{body}");
        assert!(with_words(HEAD, 1, false).expect("a refusal").ends_with(b"\r\n\r\n"), "HEAD has no body");
    }

    #[test]
    fn other_answers_are_left_alone() {
        for head in
            [&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], b"HTTP/1.1 431 x\r\n", b"", b"HTTP/1."]
        {
            assert_eq!(with_words(head, 1, true), None);
        }
    }
}

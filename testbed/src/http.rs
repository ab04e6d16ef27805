//! A blocking HTTP/1.1 client for one loopback port: one request at a time, nothing repeated, every wait bounded.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Longest answer that is read, so that a broken server cannot fill the memory.
const BODY_BYTES_MAX: u64 = 4 << 20;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Such as 202.
    pub status: u16,
    /// As text.
    pub body: String,
}

/// Keeps its connection as long as answers are good; after any failure the next request connects anew.
#[derive(Debug)]
pub struct Client {
    port: u16,
    within: Duration,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    /// `within` bounds the connecting and each read and write.
    pub fn new(port: u16, within: Duration) -> Self {
        Self { port, within, connection: None }
    }

    /// Sends one request and reads its answer. An error says nothing about whether the server has carried it out.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n", self.port);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        connection.get_mut().write_all(head.as_bytes())?;
        let (answer, reusable) = read(&mut connection)?;
        if reusable {
            self.connection = Some(connection);
        }
        Ok(answer)
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream = TcpStream::connect_timeout(&address, self.within)?;
        stream.set_read_timeout(Some(self.within))?;
        stream.set_write_timeout(Some(self.within))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }
}

fn read(connection: &mut BufReader<TcpStream>) -> io::Result<(Answer, bool)> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {what}"));
    let mut line = String::new();
    if connection.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| wrong(&line))?;
    let (mut length, mut reusable) = (None, true);
    loop {
        line.clear();
        if connection.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match (name.to_ascii_lowercase().as_str(), value.trim()) {
            ("content-length", value) => length = Some(value.parse::<u64>().map_err(|_| wrong(&line))?),
            ("connection", value) => reusable = !value.eq_ignore_ascii_case("close"),
            ("transfer-encoding", _) => return Err(wrong("chunks are not understood here")),
            _ => {}
        }
    }
    let mut body = String::new();
    let length = length.unwrap_or_else(|| {
        reusable = false;
        BODY_BYTES_MAX
    });
    connection.take(length.min(BODY_BYTES_MAX)).read_to_string(&mut body)?;
    if reusable && body.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((Answer { status, body }, reusable))
}

//! A client for HTTP/1.1 that sends exactly what it is told.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// A connection.
#[derive(Debug)]
pub struct Client {
    /// The stream.
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status.
    pub status: u16,
    /// Head as it came.
    pub head: String,
    /// Body without its framing.
    pub body: Vec<u8>,
    /// Trailers as they came.
    pub trailers: String,
}

impl Response {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// Body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// True where the other side closes the connection after it.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// First value of a header in a head.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

impl Client {
    /// On a connected stream.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Limits how long an answer may take.
    pub fn patience(&self, limit: Duration) {
        self.stream.set_read_timeout(Some(limit)).unwrap();
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A GET that must be answered.
    pub fn get(&mut self, path: &str) -> Response {
        self.try_get(path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A GET.
    pub fn try_get(&mut self, path: &str) -> io::Result<Response> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    }

    /// A POST.
    pub fn try_post(&mut self, path: &str, body: &[u8]) -> io::Result<Response> {
        let mut request =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        request.extend(body);
        self.send(&request)?;
        self.response()
    }

    /// Sends a request and reads its answer.
    pub fn ask(&mut self, request: &str) -> io::Result<Response> {
        self.send(request.as_bytes())?;
        self.response_to(request.starts_with("HEAD "))
    }

    /// Reads an answer.
    pub fn response(&mut self) -> io::Result<Response> {
        self.response_to(false)
    }

    /// Reads an answer; one to HEAD has no body.
    pub fn response_to(&mut self, head_only: bool) -> io::Result<Response> {
        let (status, head) = loop {
            let head = self.head()?;
            let status: u16 = head.get(9..12).and_then(|code| code.parse().ok()).ok_or_else(|| bad(&head))?;
            if status != 100 {
                break (status, head);
            }
        };
        let mut response = Response { status, head, body: Vec::new(), trailers: String::new() };
        if head_only || matches!(status, 101..200 | 204 | 304) {
        } else if response.header("transfer-encoding").is_some() {
            loop {
                let line = self.line()?;
                let length = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                let length = length.map_err(|_| bad(&line))?;
                if length == 0 {
                    break;
                }
                response.body.extend(self.exactly(length)?);
                self.line()?;
            }
            loop {
                let line = self.line()?;
                if line.is_empty() {
                    break;
                }
                response.trailers.push_str(&line);
                response.trailers.push('\n');
            }
        } else if let Some(length) = response.header("content-length") {
            let length = length.parse().map_err(|_| bad(length))?;
            response.body = self.exactly(length)?;
        } else {
            response.body = self.rest()?;
        }
        Ok(response)
    }

    /// Reads a head, interim ones included.
    pub fn head(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(String::from_utf8_lossy(&head).trim_end().to_owned());
            }
            self.more()?;
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|bytes| bytes == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.more()?;
        }
    }

    /// Reads this many bytes.
    pub fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// Reads until the other side ends.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// True if the other side has closed, in one way or the other, and sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        match self.more() {
            Ok(()) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let n = read(&mut self.stream, &mut chunk)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend(chunk.get(..n).unwrap_or_default());
        Ok(())
    }
}

/// Reads once; a read with a time-out is not taken up again by itself where something interrupts it.
pub(crate) fn read(stream: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {text:?}"))
}

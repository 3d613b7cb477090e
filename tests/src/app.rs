//! Applications of the pods: one thread for each connection, everything recorded.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    net::{Ipv6Addr, Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{
    http::{header, read},
    netns::Netns,
};

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The connection can carry another request.
    Keep,
    /// The connection ends.
    Close,
}

/// A request as the application got it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Head as it came, without the empty line.
    pub head: String,
    /// Path and query.
    pub path: String,
    /// Body without its framing.
    pub body: Vec<u8>,
    /// Trailers as they came.
    pub trailers: String,
}

impl Request {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }
}

/// A listening application. Stops when it is dropped.
pub struct App {
    listener: Arc<TcpListener>,
    open: Arc<Mutex<HashMap<usize, TcpStream>>>,
    /// All bytes that came, of all connections.
    pub bytes: Arc<Mutex<Vec<u8>>>,
    /// Requests that came.
    pub requests: Arc<Mutex<Vec<Request>>>,
    /// Connections that came.
    pub connections: Arc<AtomicUsize>,
}

impl App {
    /// Hands each connection to `serve`, on a thread of its own.
    pub fn raw(netns: &Netns, port: u16, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::accept(netns, port, move |stream, _, _| serve(stream))
    }

    /// Reads whole requests and hands them to `answer`, which writes the answer.
    pub fn http(
        netns: &Netns,
        port: u16,
        answer: impl Fn(&Request, &mut TcpStream) -> io::Result<Flow> + Send + Sync + 'static,
    ) -> Self {
        Self::accept(netns, port, move |stream, bytes, requests| {
            let _ = serve_http(stream, bytes, requests, &answer);
        })
    }

    /// Answers 200 to everything: header `x-pod`, and the request's head as body.
    pub fn echo(netns: &Netns, port: u16, name: &str) -> Self {
        let name = name.to_owned();
        Self::http(netns, port, move |request, stream| {
            let body = &request.head;
            write!(stream, "HTTP/1.1 200 OK\r\nx-pod: {name}\r\nx-received: {}\r\n", request.body.len())?;
            write!(stream, "content-length: {}\r\n\r\n{body}", body.len())?;
            Ok(Flow::Keep)
        })
    }

    fn accept(
        netns: &Netns,
        port: u16,
        serve: impl Fn(TcpStream, &Mutex<Vec<u8>>, &Mutex<Vec<Request>>) + Send + Sync + 'static,
    ) -> Self {
        let listener = Arc::new(netns.listen((Ipv6Addr::UNSPECIFIED, port).into()));
        let app = Self {
            listener,
            open: Arc::default(),
            bytes: Arc::default(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (listener, open, connections) = (app.listener.clone(), app.open.clone(), app.connections.clone());
        let (bytes, requests, serve) = (app.bytes.clone(), app.requests.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let number = connections.fetch_add(1, Relaxed);
                stream.set_nodelay(true).ok();
                if let Ok(copy) = stream.try_clone() {
                    open.lock().unwrap().insert(number, copy);
                }
                let (serve, bytes, requests, open) = (serve.clone(), bytes.clone(), requests.clone(), open.clone());
                std::thread::spawn(move || {
                    serve(stream, &bytes, &requests);
                    open.lock().unwrap().remove(&number);
                });
            }
        });
        app
    }

    /// Refuses connections from now on; those that are open stay.
    pub fn stop_accepting(&self) {
        nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).ok();
    }

    /// Ends open connections as well.
    pub fn stop(&self) {
        self.stop_accepting();
        for (_, stream) in self.open.lock().unwrap().drain() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Number of requests that came.
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// The last request.
    pub fn last(&self) -> Option<Request> {
        self.requests.lock().unwrap().last().cloned()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve_http(
    mut stream: TcpStream,
    bytes: &Mutex<Vec<u8>>,
    requests: &Mutex<Vec<Request>>,
    answer: &impl Fn(&Request, &mut TcpStream) -> io::Result<Flow>,
) -> io::Result<()> {
    let mut reader = Reader { stream: stream.try_clone()?, buffer: Vec::new(), record: bytes };
    loop {
        let head = reader.until(b"\r\n\r\n")?;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut request = Request { head, path, body: Vec::new(), trailers: String::new() };
        if request.header("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if request.header("transfer-encoding").is_some() {
            loop {
                let size = reader.until(b"\r\n")?;
                let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                    .map_err(io::Error::other)?;
                if size == 0 {
                    break;
                }
                request.body.extend(reader.exactly(size)?);
                reader.until(b"\r\n")?;
            }
            loop {
                let line = reader.until(b"\r\n")?;
                if line.is_empty() {
                    break;
                }
                request.trailers.push_str(&line);
                request.trailers.push('\n');
            }
        } else if let Some(length) = request.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            request.body = reader.exactly(length)?;
        }
        requests.lock().unwrap().push(request.clone());
        if answer(&request, &mut stream)? == Flow::Close {
            return stream.shutdown(Shutdown::Both);
        }
    }
}

struct Reader<'a> {
    stream: TcpStream,
    buffer: Vec<u8>,
    record: &'a Mutex<Vec<u8>>,
}

impl Reader<'_> {
    fn more(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let n = read(&mut self.stream, &mut chunk)?;
        let chunk = chunk.get(..n).unwrap_or_default();
        self.record.lock().unwrap().extend(chunk);
        self.buffer.extend(chunk);
        if n == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn until(&mut self, end: &[u8]) -> io::Result<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|bytes| bytes == end) {
                let part: Vec<u8> = self.buffer.drain(..at + end.len()).collect();
                return Ok(String::from_utf8_lossy(part.get(..at).unwrap_or_default()).into_owned());
            }
            self.more()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        Ok(self.buffer.drain(..length).collect())
    }
}

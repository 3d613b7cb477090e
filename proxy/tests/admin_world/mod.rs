//! The endpoints on ports of their own, and small clients and servers for the tests.
#![allow(dead_code, unreachable_pub)] // each test program uses a part

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use weir_proxy::{
    admin::{Addresses, Admin, App, Bound, Readiness, Servers, readiness},
    telemetry::{AccessLog, Mode, Peer, Registry, log::LogControl},
    tls::MeshTls,
};

pub struct World {
    pub bound: Bound,
    pub readiness: Readiness,
    pub registry: Arc<Registry>,
    pub tls: MeshTls,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

pub fn addresses() -> Addresses {
    let any = || vec!["127.0.0.1:0".parse().unwrap()];
    Addresses { admin: any(), merged: any(), readiness: any(), metrics: any() }
}

impl World {
    pub async fn start(change: impl FnOnce(&mut App)) -> Self {
        let readiness = Readiness::new([readiness::CERTIFICATE, readiness::INBOUND_CONFIG, readiness::REDIRECT]);
        let registry = Registry::new(Peer::unknown(), "test");
        let tls = MeshTls::new("cluster.local".parse().unwrap());
        let mut app = App { addresses: vec!["127.0.0.1".parse().unwrap()], ..App::default() };
        change(&mut app);
        let admin = Arc::new(Admin {
            readiness: readiness.clone(),
            registry: registry.clone(),
            tls: tls.clone(),
            config_dump: Arc::new(|| serde_json::json!({"a": 1})),
            log: LogControl::check_only(),
            access_log: Some(AccessLog::start(std::io::sink(), Mode::Off, Arc::default()).unwrap()),
            app,
        });
        let servers = Servers::bind(&addresses()).unwrap();
        let bound = servers.bound();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(servers.run(admin, stopped));
        Self { bound, readiness, registry, tls, stop, task }
    }

    pub async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.expect("it ends").unwrap();
    }
}

/// Sends bytes and reads the answer to its end: status (0 for none) and body, whose framing is undone.
pub async fn raw(at: SocketAddr, request: &str) -> (u16, String) {
    let work = async {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // A server that has seen enough may close while we still write.
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let answer = tokio::time::timeout(Duration::from_secs(20), work).await.expect("an answer in time");
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, String::new()) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut rest, mut whole) = (body, String::new());
    loop {
        let (size, tail) = rest.split_once("\r\n").expect("a chunk");
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        if size == 0 {
            return (status, whole);
        }
        whole.push_str(&tail[..size]);
        rest = &tail[size + 2..];
    }
}

pub async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    raw(at, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
}

pub async fn post(at: SocketAddr, path: &str) -> (u16, String) {
    raw(at, &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")).await
}

/// An application that reads a request head and answers by rote; requests and callers are kept.
pub struct Application {
    pub port: u16,
    pub seen: Arc<std::sync::Mutex<Vec<(SocketAddr, String)>>>,
    task: JoinHandle<()>,
}

impl Application {
    pub async fn answering(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<std::sync::Mutex<Vec<(SocketAddr, String)>>> = Arc::default();
        let (keep, answer) = (seen.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut stream, peer)) = listener.accept().await else { return };
                let (keep, answer) = (keep.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    keep.lock().unwrap().push((peer, head.clone()));
                    let _ = stream.write_all(&answer(&head)).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self { port, seen, task }
    }

    pub fn heads(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(_, head)| head.clone()).collect()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

//! A running webhook with a certificate of its own, and a client that speaks HTTP/1.1 over TLS byte by byte.
#![allow(dead_code)] // each test uses a part

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weir_webhook::server::{Files, Server};

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A self-signed certificate, as PEM and for the client to trust.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) der: CertificateDer<'static>,
}

pub(crate) fn pair() -> Pair {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["weir-webhook.weir-system.svc".into()]).unwrap().self_signed(&key).unwrap();
    Pair { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
}

/// A folder that is removed at the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weir-webhook-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) pair: Pair,
    pub(crate) folder: Folder,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts with `tls.crt` and `tls.key` as plain files.
    pub(crate) async fn start() -> Self {
        let folder = Folder::new();
        let pair = pair();
        write(&folder.0, &pair);
        Self::start_in(folder, pair).await
    }

    /// Starts with `tls.crt` and `tls.key` of a folder that is there.
    pub(crate) async fn start_in(folder: Folder, pair: Pair) -> Self {
        let files = Files { cert: folder.0.join("tls.crt"), key: folder.0.join("tls.key") };
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), files, super::settings()).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let address = server.address().unwrap();
        Self { address, pair, folder, stop, task: tokio::spawn(server.run(stopped)) }
    }

    pub(crate) async fn connect(&self) -> TlsStream<TcpStream> {
        connect(self.address, &self.pair.der).await.unwrap()
    }

    /// Sends bytes on a connection of its own and returns status and body of the answer.
    pub(crate) async fn send(&self, request: &[u8]) -> (u16, String) {
        let mut stream = self.connect().await;
        let _ = stream.write_all(request).await; // the server may answer before it has read all, and close
        answer(&mut stream).await
    }

    pub(crate) async fn inject(&self, body: &[u8]) -> (u16, String) {
        self.send(&post("application/json", body)).await
    }

    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let (status, text) = self.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status, 200);
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {line} in\n{text}")).parse().unwrap()
    }

    /// Asks it to stop; returns a handle that ends when it has.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        self.stop.send_replace(true);
        self.task
    }
}

pub(crate) fn write(folder: &Path, pair: &Pair) {
    std::fs::write(folder.join("tls.crt"), &pair.cert).unwrap();
    std::fs::write(folder.join("tls.key"), &pair.key).unwrap();
}

/// Connects, trusting one certificate and no other.
pub(crate) async fn connect(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    connect_with(address, trusted, &[]).await
}

/// The same, offering these application protocols.
pub(crate) async fn connect_with(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("weir-webhook.weir-system.svc").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
}

pub(crate) fn post(content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /inject?timeout=5s HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Reads until the server closes: status and body. Status 0 is a connection closed without an answer.
pub(crate) async fn answer(stream: &mut TlsStream<TcpStream>) -> (u16, String) {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    tokio::time::timeout(PATIENCE, async {
        while let Ok(read) = stream.read(&mut chunk).await {
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&chunk[..read]);
        }
    })
    .await
    .expect("the server neither answers nor closes");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

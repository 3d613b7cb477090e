//! Certificates of yesterday, which rcgen does not make, shown by a peer that is not rustls: both are the `openssl` program's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tls_authority;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use rcgen::{CertifiedIssuer, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tls_authority::*;
use tokio::net::{TcpListener, TcpStream};
use weir_proxy::tls::{self, Alpn, HandshakeError, MeshTls, PortKind};

/// What openssl knows an authority and a leaf by; `SECLEVEL=0` is its word for "whatever there is".
const SECTIONS: &str = "[v3]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
[for_our_uris]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
nameConstraints = critical, permitted;URI:cluster.local
[for_other_uris]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
nameConstraints = critical, permitted;URI:example.org
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = URI:";
const ANY_LEVEL: &str = "DEFAULT@SECLEVEL=0";

/// True where the program is there. Without it the test is left out and says so; where tests must not be left out, it fails.
fn is_there() -> bool {
    let found = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "openssl is missing: run `tools/setup test`");
    if !found {
        eprintln!("SKIPPED: openssl is missing: run `tools/setup test`");
    }
    found
}

/// Keys and certificates as files, gone with the test.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("weir-openssl-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("sections"), format!("{SECTIONS}{SERVER}\n")).unwrap();
        Self(folder)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new("openssl");
        command.args(words.split(' ')).current_dir(&self.0);
        command
    }

    fn run(&self, words: &str) {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `NAME.pem` with a key of its own in `NAME.key`, signed by the key of `by` as `digest` says, with the extensions of a section.
    fn issue(&self, name: &str, key: &str, by: &str, digest: &str, section: &str) {
        static SERIAL: AtomicU32 = AtomicU32::new(1);
        let serial = SERIAL.fetch_add(1, Relaxed);
        self.run(&format!("genpkey {key} -out {name}.key"));
        self.run(&format!("req -new -key {name}.key -subj /CN={name}-{serial} -out {name}.csr"));
        let extensions =
            if section.is_empty() { String::new() } else { format!(" -extfile sections -extensions {section}") };
        let how = format!("-days 1 -set_serial {serial} {digest}{extensions}");
        self.run(&format!("x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key {how} -out {name}.pem"));
    }

    fn der(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.0.join(format!("{name}.pem"))).unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A running `openssl`; its standard input stays open, whose end would be its own.
struct Peer(Child);

impl Peer {
    fn start(files: &Files, words: &str) -> Self {
        let mut command = files.command(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The words by which openssl shows a certificate, with the one of its authority if there is one.
fn shown(leaf: &str, through: &str) -> String {
    let chain = if through.is_empty() { String::new() } else { format!(" -cert_chain {through}.pem") };
    format!("-tls1_3 -cipher {ANY_LEVEL} -alpn istio-http/1.1 -cert {leaf}.pem -key {leaf}.key{chain}")
}

async fn called_by_us(us: &MeshTls, files: &Files, certificate: &str) -> Result<(), HandshakeError> {
    let mut server = Peer::start(files, &format!("s_server -accept 127.0.0.1:0 -naccept 1 {certificate}"));
    let lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let at = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("ACCEPT ")?.parse::<SocketAddr>().ok());
    let stream = TcpStream::connect(at.expect("the server says where it listens")).await.unwrap();
    let expected = id(SERVER);
    let config = us.client_config(&expected, Alpn::Http1).unwrap();
    tls::connect(config, stream, peer(), &expected, LIMIT).await.map(|_| ())
}

async fn calling_us(us: &MeshTls, files: &Files, certificate: &str) -> Result<(), HandshakeError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let _client = Peer::start(files, &format!("s_client -connect {at} {certificate}"));
    let (stream, _) = listener.accept().await.unwrap();
    let config = us.server_config(PortKind::Http).unwrap();
    let stream = tls::accept(config, stream, peer(), LIMIT).await?;
    assert_eq!(tls::peer_identity(stream.get_ref().1), Some(id(SERVER)));
    Ok(())
}

#[tokio::test]
async fn weak_keys_and_signatures_of_yesterday_are_refused() {
    if !is_there() {
        return;
    }
    const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";
    const RSA1024: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:1024";
    const RSA2048: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
    let files = Files::new();
    let key = KeyPair::generate().unwrap();
    fs::write(files.0.join("root.key"), key.serialize_pem()).unwrap();
    let mesh = Authority { root: CertifiedIssuer::self_signed(authority_params("mesh root"), key).unwrap() };
    fs::write(files.0.join("root.pem"), mesh.root.pem()).unwrap();
    for (name, key, by, digest, section) in [
        ("short-root", RSA1024, "root", "-sha256", "v3"),
        ("rsa", RSA2048, "root", "-sha256", "v3"),
        ("short", RSA1024, "root", "-sha256", "v3"),
        ("by-sha1", RSA2048, "root", "-sha1", "v3"),
        ("version-1", P256, "root", "-sha256", ""),
        ("our-uris", P256, "root", "-sha256", "for_our_uris"),
        ("other-uris", P256, "root", "-sha256", "for_other_uris"),
    ] {
        files.issue(name, key, by, digest, section);
    }
    // One of them becomes a root, which the proxy is told to believe as well.
    files.run("x509 -req -in short-root.csr -signkey short-root.key -sha256 -days 1 -extfile sections -extensions v3 -out short-root.pem");
    let us = MeshTls::new("cluster.local".parse().unwrap());
    let own = mesh.leaf(CLIENT, |_| {});
    us.install(own.chain, own.key, vec![mesh.root_der(), files.der("short-root")]).unwrap();

    let pss = "-sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32";
    let mut wrong = Vec::new();
    for (what, key, by, digest, accepted) in [
        ("on P-256, as it should be", P256, "root", "-sha256", true),
        ("of RSA, 2048 bits", RSA2048, "root", "-sha256", true),
        ("of RSA, 1024 bits", RSA1024, "root", "-sha256", false),
        ("signed by ECDSA with SHA-1", P256, "root", "-sha1", false),
        ("through an authority of RSA, 2048 bits", P256, "rsa", "-sha256", true),
        ("through it, signed by RSA-PSS", P256, "rsa", pss, true),
        ("through it, signed by RSA with SHA-1", P256, "rsa", "-sha1", false),
        ("through it, signed by RSA with MD5", P256, "rsa", "-md5", false),
        ("through an authority of RSA, 1024 bits", P256, "short", "-sha256", false),
        ("through an authority that was signed with SHA-1", P256, "by-sha1", "-sha256", false),
        ("through an authority of X.509 version 1", P256, "version-1", "-sha256", false),
        // Names of URIs are no names of hosts: constraints on them can not be checked, so nobody passes.
        ("through an authority for URIs of our trust domain", P256, "our-uris", "-sha256", false),
        ("through an authority for URIs of another", P256, "other-uris", "-sha256", false),
        ("of a root of RSA, 1024 bits", P256, "short-root", "-sha256", false),
    ] {
        files.issue("leaf", key, by, digest, "leaf");
        let certificate = shown("leaf", if ["root", "short-root"].contains(&by) { "" } else { by });
        for (side, result) in [
            ("server", called_by_us(&us, &files, &certificate).await),
            ("client", calling_us(&us, &files, &certificate).await),
        ] {
            println!("{what}, as {side}: {}", result.as_ref().map_or_else(ToString::to_string, |()| "accepted".into()));
            // It is refused for what it is, and not because openssl did not get so far.
            let judged = result
                .as_ref()
                .map_or_else(|error| !["connection", "handshake_timeout"].contains(&error.reason()), |()| true);
            if result.is_ok() != accepted || !judged {
                wrong.push(format!("{what}, as {side}: {result:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Certificates and roots change while connections live.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tls_authority;

use std::sync::Arc;

use rustls::HandshakeKind;
use tls_authority::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_proxy::tls::{Alpn, InstallError, MeshTls, PortKind};

fn install(tls: &MeshTls, authority: &Authority, name: &str, roots: &[&Authority]) {
    let material = authority.leaf(name, |_| {});
    tls.install(material.chain, material.key, roots.iter().map(|root| root.root_der()).collect()).unwrap();
}

async fn works(client: &MeshTls, server: &MeshTls) -> bool {
    let (near, far) = shake(client, server, SERVER, Alpn::Http1, PortKind::Http).await;
    let (Ok(mut near), Ok(mut far)) = (near, far) else { return false };
    let (_, read) = tokio::join!(far.write_all(b"hello"), async {
        let mut buffer = [0; 5];
        near.read_exact(&mut buffer).await.map(|_| buffer)
    });
    read.is_ok_and(|buffer| &buffer == b"hello")
}

#[tokio::test]
async fn streams_outlive_rotations() {
    let mesh = Authority::new("mesh root");
    let (client, server) = (side(&mesh, CLIENT), side(&mesh, SERVER));
    let (near, far) = shake(&client, &server, SERVER, Alpn::Opaque, PortKind::Opaque).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let echo = tokio::spawn(async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            match far.read(&mut buffer).await.unwrap() {
                0 => return,
                n => {
                    far.write_all(&buffer[..n]).await.unwrap();
                    far.flush().await.unwrap();
                }
            }
        }
    });
    for round in 0..20_u8 {
        install(&client, &mesh, CLIENT, &[&mesh]);
        install(&server, &mesh, SERVER, &[&mesh]);
        let sent = vec![round; 10_000];
        near.write_all(&sent).await.unwrap();
        near.flush().await.unwrap();
        let mut got = vec![0; sent.len()];
        near.read_exact(&mut got).await.unwrap();
        assert_eq!(got, sent);
        assert!(works(&client, &server).await);
    }
    assert_eq!((client.generation(), server.generation()), (21, 21));
    near.shutdown().await.unwrap();
    drop(near);
    let _ = echo.await;
}

#[tokio::test]
async fn roots_rotate_with_an_overlap_and_the_old_one_goes() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (client, server) = (side(&old, CLIENT), side(&old, SERVER));
    assert!(works(&client, &server).await);
    // Both trust both, one after the other.
    install(&server, &old, SERVER, &[&old, &new]);
    assert!(works(&client, &server).await);
    install(&client, &old, CLIENT, &[&old, &new]);
    // Certificates of the new root, one after the other.
    install(&server, &new, SERVER, &[&old, &new]);
    assert!(works(&client, &server).await);
    install(&client, &new, CLIENT, &[&old, &new]);
    assert!(works(&client, &server).await);
    // The old root goes: who still has its certificate is out, on the very next handshake.
    install(&server, &new, SERVER, &[&new]);
    assert!(works(&client, &server).await);
    let late = side(&old, CLIENT);
    install(&late, &old, CLIENT, &[&old, &new]);
    assert!(!works(&late, &server).await);
}

#[tokio::test]
async fn no_session_is_resumed() {
    let mesh = Authority::new("mesh root");
    let (client, server) = (side(&mesh, CLIENT), side(&mesh, SERVER));
    for _ in 0..5 {
        let (near, far) = shake(&client, &server, SERVER, Alpn::Http1, PortKind::Http).await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        // A ticket would arrive with the first bytes.
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
        assert_eq!(near.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(far.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(near.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[test]
fn nothing_is_handed_out_before_a_certificate() {
    let tls = MeshTls::new("cluster.local".parse().unwrap());
    assert!(tls.server_config(PortKind::Http).is_none());
    assert!(tls.client_config(&id(SERVER), Alpn::Http1).is_none());
    assert!(tls.facts().is_none() && tls.identity().is_none());
    assert_eq!(tls.generation(), 0);
}

#[test]
fn a_bad_certificate_never_replaces_a_good_one() {
    let (mesh, other) = (Authority::new("mesh root"), Authority::new("other"));
    let tls = side(&mesh, SERVER);
    let before = tls.facts().unwrap();
    let good = || mesh.leaf(SERVER, |_| {});
    let expired = mesh.leaf(SERVER, |p| p.not_after = time::OffsetDateTime::now_utc() - time::Duration::minutes(1));
    let client_only = mesh.leaf(SERVER, |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
    let mut foreign_key = good();
    foreign_key.key = mesh.leaf(SERVER, |_| {}).key;
    let empty = Material { chain: Vec::new(), ..good() };
    let broken = Material { chain: vec![vec![1, 2, 3].into()], ..good() };
    for (name, material, roots) in [
        ("expired", expired, vec![mesh.root_der()]),
        ("for clients only", client_only, vec![mesh.root_der()]),
        ("of another root", other.leaf(SERVER, |_| {}), vec![mesh.root_der()]),
        ("of another trust domain", mesh.leaf("spiffe://x/ns/a/sa/b", |_| {}), vec![mesh.root_der()]),
        ("with the key of another", foreign_key, vec![mesh.root_der()]),
        ("empty", empty, vec![mesh.root_der()]),
        ("broken", broken, vec![mesh.root_der()]),
        ("without roots", good(), vec![]),
        ("with a broken root", good(), vec![vec![0x30, 0].into()]),
    ] {
        let result: Result<_, InstallError> = tls.install(material.chain, material.key, roots);
        assert!(result.is_err(), "{name} was installed");
        assert_eq!(tls.facts().unwrap(), before, "{name}");
    }
}

#[test]
fn client_configurations_are_shared_bounded_and_forgotten() {
    let mesh = Authority::new("mesh root");
    let tls = side(&mesh, CLIENT);
    let config = |name: &str| tls.client_config(&id(name), Alpn::Http1).unwrap();
    let first = config(SERVER);
    assert!(Arc::ptr_eq(&first, &config(SERVER)));
    assert!(!Arc::ptr_eq(&first, &tls.client_config(&id(SERVER), Alpn::Opaque).unwrap()));
    let mut kept = Vec::new();
    for n in 0..3000 {
        kept.push(Arc::downgrade(&config(&format!("spiffe://cluster.local/ns/shop/sa/s{n}"))));
        // What is used stays, whatever else comes.
        assert!(Arc::ptr_eq(&first, &config(SERVER)));
    }
    let alive = kept.iter().filter(|config| config.upgrade().is_some()).count();
    assert!((500..=1024).contains(&alive), "{alive} configurations are kept");
    install(&tls, &mesh, CLIENT, &[&mesh]);
    assert!(!Arc::ptr_eq(&first, &config(SERVER)));
    assert!(kept.iter().all(|config| config.upgrade().is_none()));
}

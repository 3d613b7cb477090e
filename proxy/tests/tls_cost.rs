//! What a handshake costs: run with `cargo test --release -p weir-proxy --test tls_cost -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tls_authority;

use std::{sync::Arc, time::Instant};

use rustls::{ClientConfig, ServerConfig, client::Resumption, server::ServerSessionMemoryCache};
use tls_authority::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_proxy::tls::{self, Alpn, PortKind};

const ROUNDS: u32 = 2000;

async fn microseconds(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> f64 {
    let expected = id(SERVER);
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (near, far) = tokio::join!(
            tls::connect(client.clone(), near, peer(), &expected, LIMIT),
            tls::accept(server.clone(), far, peer(), LIMIT)
        );
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        far.write_all(b"x").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap();
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS)
}

#[tokio::test]
#[ignore = "a measurement"]
async fn full_and_resumed() {
    let mesh = Authority::new("mesh root");
    let (client, server) = (side(&mesh, CLIENT), side(&mesh, SERVER));
    let client = client.client_config(&id(SERVER), Alpn::Http1).unwrap();
    let server = server.server_config(PortKind::Http).unwrap();
    println!("both ends, full: {:.0} us", microseconds(&client, &server).await);

    let mut resuming_client = ClientConfig::clone(&client);
    resuming_client.resumption = Resumption::in_memory_sessions(256);
    let mut resuming_server = ServerConfig::clone(&server);
    resuming_server.session_storage = ServerSessionMemoryCache::new(4096);
    resuming_server.send_tls13_tickets = 1;
    let (resuming_client, resuming_server) = (Arc::new(resuming_client), Arc::new(resuming_server));
    microseconds(&resuming_client, &resuming_server).await;
    println!("both ends, resumed: {:.0} us", microseconds(&resuming_client, &resuming_server).await);

    let (near, far) = tokio::io::duplex(64 * 1024);
    let expected = id(SERVER);
    let (near, far) =
        tokio::join!(tls::connect(client, near, peer(), &expected, LIMIT), tls::accept(server, far, peer(), LIMIT));
    let (near, _far) = (near.unwrap(), far.unwrap());
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        assert!(tls::peer_identity(near.get_ref().1).is_some());
    }
    println!("identity of a peer: {:.1} us", begun.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
}

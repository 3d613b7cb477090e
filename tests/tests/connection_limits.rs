//! `maxConnections` with several workers: a limit of all of them together, and none of them is left with nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use weir_tests::{App, Flow, Pod, PodSpec, World, at, each_with, until};

/// Callers with a connection each: enough of them that every worker has some.
const CALLERS: usize = 12;

/// A client, and a server outside of the mesh, so that the client's connections are those that it sees.
struct Shop {
    client: Pod,
    app: App,
    to: SocketAddr,
    /// Most requests that were under way at once.
    most: Arc<AtomicUsize>,
    _world: World,
    _server: Pod,
}

impl Shop {
    /// An answer takes so long; there may be so many connections.
    fn new(name: &str, workers: usize, answer: Duration, connections: u32) -> Self {
        let world = World::new(name);
        let server = world.pod_unready(PodSpec::new("server").label("app", "shop").port("http", 8080).outside());
        let (now, most) = (AtomicUsize::new(0), Arc::<AtomicUsize>::default());
        let seen = most.clone();
        let app = App::http(&server.netns, 8080, move |_, stream| {
            seen.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            std::thread::sleep(answer);
            now.fetch_sub(1, SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            Ok(Flow::Keep)
        });
        let ip = world.service("shop", 10, &json!({"app": "shop"}), &[("http", 80, 8080)]);
        let rule = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "shop", "namespace": "shop"},
            "spec": {"host": "shop", "trafficPolicy": {"connectionPool": {"tcp": {"maxConnections": connections}}}},
        });
        world.write("limit", &rule.to_string());
        let client = world.pod(PodSpec::new("client").workers(workers));
        server.wait_ready();
        let shop = Self { client, app, to: at(ip, 80), most, _world: world, _server: server };
        until("the limit is in force", || {
            assert_eq!(shop.client.connect(shop.to).get("/warm").status, 200);
            shop.client.admin("/config_dump").contains("max_connections").then_some(())
        });
        shop
    }
}

/// The only connection goes from hand to hand: who has it idle gives it up at once, whoever asks.
#[test]
fn an_idle_connection_is_given_up_for_another_worker() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("idle-limit", workers, Duration::ZERO, 1);
        let mut callers: Vec<_> = (0..CALLERS).map(|_| shop.client.connect(shop.to)).collect();
        let before = shop.app.connections.load(SeqCst);
        let mut longest = Duration::ZERO;
        for round in 0..5 {
            for caller in &mut callers {
                let start = Instant::now();
                assert_eq!(caller.get(&format!("/{round}")).status, 200);
                longest = longest.max(start.elapsed());
            }
        }
        assert!(longest < Duration::from_secs(1), "{workers} workers: {longest:?}");
        let made = shop.app.connections.load(SeqCst) - before;
        assert_eq!(made > 0, workers > 1, "{workers} workers: {made} connections more");
    });
}

/// More is asked than the connections can carry: each caller gets its share, and a worker does not keep them for its own.
#[test]
fn busy_connections_are_shared_out() {
    each_with(&[1, 4], |workers| {
        let shop = Shop::new("busy-limit", workers, Duration::from_millis(5), 2);
        shop.most.store(0, SeqCst);
        let end = Instant::now() + Duration::from_secs(4);
        let answers: Vec<usize> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut connection = shop.client.connect(shop.to);
                        let mut answers = 0;
                        while Instant::now() < end {
                            assert_eq!(connection.get("/").status, 200);
                            answers += 1;
                        }
                        answers
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let (all, least) = (answers.iter().sum::<usize>(), *answers.iter().min().unwrap());
        assert!(
            least * CALLERS * 5 > all,
            "{workers} workers: somebody got less than a fifth of its share: {answers:?}"
        );
        assert!(shop.most.load(SeqCst) <= 2, "{workers} workers: {:?} at once", shop.most);
    });
}

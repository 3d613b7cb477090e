//! Kept connections that end at a bad moment: an application that closes them, and a proxy that ends or begins anew.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

use std::{
    collections::HashMap,
    io::Write as _,
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::json;
use weir_tests::{App, Client, Load, Netns, Pod, PodSpec, World, at, http::header, is_root, until};

/// When an application ends a connection that could be kept.
#[derive(Debug, Clone, Copy)]
struct Habit {
    /// After so many answers.
    most: usize,
    /// After this time without a request.
    idle: Duration,
    /// Says so in the last answer.
    says: bool,
}

/// What an application has seen.
#[derive(Debug, Default)]
struct Seen {
    /// How often each path came.
    paths: Mutex<HashMap<String, usize>>,
    /// Connections that it has ended.
    closed: AtomicUsize,
}

fn app(netns: &Netns, habit: Habit) -> (App, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let record = seen.clone();
    let app = App::raw(netns, 8080, move |stream| {
        let _ = serve(&stream, habit, &record);
        let _ = stream.shutdown(Shutdown::Both);
        record.closed.fetch_add(1, Relaxed);
    });
    (app, seen)
}

fn serve(mut stream: &TcpStream, habit: Habit, seen: &Seen) -> std::io::Result<()> {
    let mut client = Client::new(stream.try_clone()?);
    for number in 1..=habit.most {
        client.patience(habit.idle);
        let head = client.head()?;
        client.patience(Duration::from_secs(10));
        if let Some(length) = header(&head, "content-length") {
            client.exactly(length.parse().unwrap())?;
        }
        let path = head.split(' ').nth(1).unwrap().to_owned();
        *seen.paths.lock().unwrap().entry(path).or_default() += 1;
        let goodbye = if habit.says && number == habit.most { "connection: close\r\n" } else { "" };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{goodbye}content-length: 2\r\n\r\nok").as_bytes())?;
    }
    Ok(())
}

struct Pair {
    client: Pod,
    servers: Vec<Pod>,
    service: SocketAddr,
    _world: World,
}

impl Pair {
    fn new(name: &str, workers: usize, servers: &[&str], spec: impl Fn(PodSpec) -> PodSpec) -> Self {
        let world = World::new(name);
        let start = |name: &&str| {
            world.pod_unready(spec(PodSpec::new(name).label("app", "server").port("http", 8080).workers(workers)))
        };
        let servers: Vec<Pod> = servers.iter().map(start).collect();
        let service = at(world.service("server", 10, &json!({"app": "server"}), &[("http", 80, 8080)]), 80);
        let client = world.pod(PodSpec::new("client").workers(workers));
        servers.iter().for_each(Pod::wait_ready);
        Self { client, servers, service, _world: world }
    }
}

/// What came of many requests, by path.
#[derive(Debug, Default)]
struct Outcome {
    answered: Vec<String>,
    failed: Vec<(String, String)>,
}

/// Sends requests from several connections, with pauses of up to `pause` between them.
fn send(pair: &Pair, round: usize, requests: usize, pause: Duration) -> Outcome {
    let all = Mutex::new(Outcome::default());
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let all = &all;
            scope.spawn(move || {
                let mut connection = pair.client.connect(pair.service);
                for number in 0..requests {
                    let post = (thread + number) % 2 == 0;
                    let path = format!("/{}-{round}-{thread}-{number}", if post { "post" } else { "get" });
                    let answer = if post { connection.try_post(&path, b"body") } else { connection.try_get(&path) };
                    let mut all = all.lock().unwrap();
                    match answer {
                        Ok(response) if response.status == 200 => all.answered.push(path),
                        Ok(response) => all.failed.push((path, response.head)),
                        Err(error) => {
                            all.failed.push((path, error.to_string()));
                            connection = pair.client.connect(pair.service);
                        }
                    }
                    drop(all);
                    // From nothing to all of the pause, in an order that meets the other side's at every moment.
                    std::thread::sleep(pause.mul_f64(((number * 7 + thread * 3) % 16) as f64 / 16.0));
                }
            });
        }
    });
    all.into_inner().unwrap()
}

#[test]
fn an_application_that_ends_kept_connections_fails_no_get_and_gets_no_post_twice() {
    if !is_root() {
        return;
    }
    let long = Duration::from_secs(60);
    let short = Duration::from_millis(4);
    let habits = [
        Habit { most: 1, idle: long, says: true },
        Habit { most: 1, idle: long, says: false },
        Habit { most: 3, idle: long, says: true },
        Habit { most: 3, idle: long, says: false },
        Habit { most: 1000, idle: short, says: false },
        Habit { most: 7, idle: short, says: false },
    ];
    for workers in [1, 4] {
        let pair = Pair::new("habits", workers, &["server"], |spec| spec);
        for (round, habit) in habits.into_iter().enumerate() {
            let (app, seen) = app(&pair.servers[0].netns, habit);
            let outcome = send(&pair, round, 150, Duration::from_millis(8));
            drop(app);
            let paths = seen.paths.lock().unwrap();
            let what = format!("{workers} workers, {habit:?}");
            for (path, problem) in &outcome.failed {
                assert!(path.starts_with("/post"), "{what}: {path} failed: {problem}");
                assert!(!habit.says, "{what}: {path} failed, although the end was announced: {problem}");
                // It went out on a connection that the application ended at the same moment: who can know whether it was read?
                let line = pair.servers[0].logged("why", |line| line["path"] == path.as_str());
                assert_eq!(line["response_flags"], "UC", "{what}: {line}");
            }
            for path in &outcome.answered {
                let most = if path.starts_with("/post") { 1 } else { 2 };
                assert!((1..=most).contains(&paths[path]), "{what}: {path} came {} times", paths[path]);
            }
            assert!(paths.iter().all(|(path, times)| path.starts_with("/get") || *times == 1), "{what}: {paths:?}");
            eprintln!("{what}: {} of {} POSTs met a closing connection", outcome.failed.len(), 300);
            assert!(outcome.failed.len() < 60, "{what}: {:?}", outcome.failed);
        }
    }
}

#[test]
fn what_the_application_has_ended_before_is_never_used_again() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let pair = Pair::new("ended", workers, &["server"], |spec| spec);
        let habit = Habit { most: 1, idle: Duration::from_secs(60), says: false };
        let (_app, seen) = app(&pair.servers[0].netns, habit);
        let mut connection = pair.client.connect(pair.service);
        for number in 0..100 {
            let response = connection.try_post(&format!("/{number}"), b"body").unwrap();
            assert_eq!(response.status, 200, "{workers} workers, request {number}: {response:?}");
            until("the application has ended the connection", || (seen.closed.load(Relaxed) > number).then_some(()));
        }
        assert!(pair.servers[0].metric("weir_retries_total", &[]) < 0.1);
    }
}

#[test]
fn connections_to_a_proxy_that_has_begun_anew_are_replaced() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let pair = Pair::new("anew", workers, &["server"], |spec| spec);
        let server = &pair.servers[0];
        let _app = App::http(&server.netns, 8080, |request, stream| {
            if request.path == "/slow" {
                std::thread::sleep(Duration::from_millis(200)); // so that the requests need connections of their own
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            Ok(weir_tests::Flow::Keep)
        });
        for round in 0..2 {
            std::thread::scope(|scope| {
                for _ in 0..12 {
                    scope.spawn(|| assert_eq!(pair.client.connect(pair.service).get("/slow").status, 200));
                }
            });
            server.restart_proxy();
            server.wait_ready();
            // More dead connections are kept than there are attempts for a request.
            for number in 0..12 {
                let mut connection = pair.client.connect(pair.service);
                let post = round == 0;
                let answer = if post { connection.try_post("/", b"body") } else { connection.try_get("/") };
                let response = answer.unwrap();
                assert_eq!(response.status, 200, "{workers} workers, post {post}, {number}: {response:?}");
            }
        }
    }
}

#[test]
fn a_servers_proxy_that_ends_and_begins_anew_under_load_fails_no_request() {
    if !is_root() {
        return;
    }
    for workers in [1, 4] {
        let pair = Pair::new("restart", workers, &["a", "b"], |spec| spec.env("WEIR_DRAIN_SECONDS", "4"));
        let apps: Vec<App> = pair.servers.iter().map(|pod| App::echo(&pod.netns, 8080, &pod.name)).collect();
        let load = Load::start(&pair.client, pair.service, 6);
        load.more(300);
        for (pod, app) in pair.servers.iter().zip(&apps) {
            // Nobody tells the control plane: the endpoint stays in the list.
            pod.proxy(|proxy| proxy.signal(Signal::SIGTERM));
            let status = pod.proxy(|proxy| proxy.wait(Duration::from_secs(15)));
            assert!(status.success(), "{status}");
            assert!(pod.log(&["drain deadline reached"]).is_empty(), "requests were cut");
            load.more(100);
            pod.restart_proxy();
            pod.wait_ready();
            let before = app.count();
            until("it is used again", || (app.count() > before + 20).then_some(()));
        }
        let outcome = load.stop();
        assert!(outcome.failed.is_empty(), "{workers} workers: {:?} of {}", outcome.failed, outcome.total());
    }
}

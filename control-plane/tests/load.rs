//! How it holds up: 1,000 services, some hundred proxies with 20 services each. Run by hand, it prints what it measured:
//!
//! ```text
//! cargo test --release -p weir-control --test load -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests stand outside of #[test]

#[allow(unreachable_pub, dead_code)] // shared by the files of this folder
mod support;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use support::{Control, Place, Proxy, Seen, at};
use weir_xds::Kind;

const SERVICES: usize = 1000;
const PODS_EACH: usize = 3;
const PROXIES: usize = 300;
const NAMES_EACH: usize = 20;
const CHANGES: usize = 200;

fn service(i: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}, namespace: shop}}\nspec: {{clusterIP: 198.19.{}.{}, ports: \
         [{{name: http, port: 80, targetPort: 8080}}]}}\n",
        i / 250,
        i % 250 + 1
    )
}

fn slice(i: usize, ready: usize) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{i}-x, namespace: shop, labels: \
         {{kubernetes.io/service-name: s{i}}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
    );
    for j in 0..PODS_EACH {
        let n = i * PODS_EACH + j;
        writeln!(
            text,
            "- {{addresses: [198.18.{}.{}], conditions: {{ready: {}}}, targetRef: {{kind: Pod, name: p{n}}}}}",
            n / 250,
            n % 250 + 1,
            j < ready
        )
        .unwrap();
    }
    text
}

fn pod(n: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, namespace: shop, uid: u{n}, labels: {{app: s}}}}\nspec: \
         {{initContainers: [{{name: weir-proxy, image: p, restartPolicy: Always}}], containers: [{{name: a, image: a}}]}}\nstatus: \
         {{podIP: 198.18.{}.{}, conditions: [{{type: Ready, status: 'True'}}]}}\n",
        n / 250,
        n % 250 + 1
    )
}

/// User and system time of a process, and its resident memory.
fn usage(pid: u32) -> (Duration, usize) {
    let stat = support::read(format!("/proc/{pid}/stat").as_ref());
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let kib = |status: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (Duration::from_millis(ticks * 10), kib(&support::read(format!("/proc/{pid}/status").as_ref())))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, run by hand"]
async fn changes_reach_all_who_asked() {
    let place = Place::new("load");
    for i in 0..SERVICES {
        place.write(&format!("service-s{i}.yaml"), &service(i));
        place.write(&format!("slice-s{i}.yaml"), &slice(i, PODS_EACH));
    }
    for n in 0..SERVICES * PODS_EACH {
        place.write(&format!("pod-p{n}.yaml"), &pod(n));
    }
    let start = Instant::now();
    let control = Control::start(&place);
    let address = at(&control);
    let mut proxies = Vec::new();
    for p in 0..PROXIES {
        let token = place.token(&format!("p{p}"), &format!("u{p}"), "default");
        let proxy = Proxy::start(&address, &place.root(), &format!("p{p}.shop"), &token);
        for k in 0..NAMES_EACH {
            let i = (p * 7 + k * 13) % SERVICES;
            let host = format!("s{i}.shop.svc.cluster.local");
            proxy.names.add(Kind::Listener, format!("weir/outbound/198.19.{}.{}:80", i / 250, i % 250 + 1));
            proxy.names.add(Kind::Route, format!("{host}:80"));
            proxy.names.add(Kind::Cluster, format!("outbound|80||{host}"));
            proxy.names.add(Kind::Endpoints, format!("outbound|80||{host}"));
        }
        proxies.push(proxy);
    }
    for proxy in &mut proxies {
        let names = proxy.names.len();
        while proxy.has.len() < names {
            assert!(!matches!(proxy.next().await, Seen::Removed(..)));
        }
    }
    println!("{PROXIES} proxies with {} names each are served {:?} after the start", NAMES_EACH * 4, start.elapsed());

    let (cpu_before, _) = usage(control.pid());
    let began = Instant::now();
    let mut times: Vec<Duration> = Vec::new();
    let mut deliveries = 0;
    for change in 0..CHANGES {
        let i = (change * 13) % SERVICES;
        let name = format!("outbound|80||s{i}.shop.svc.cluster.local");
        let start = Instant::now();
        place.write(&format!("slice-s{i}.yaml"), &slice(i, 1 + change / SERVICES));
        for proxy in proxies.iter_mut().filter(|proxy| proxy.has.contains_key(&(Kind::Endpoints, name.clone()))) {
            let (at, seen) = tokio::time::timeout(Duration::from_secs(10), proxy.seen.recv()).await.unwrap().unwrap();
            let Seen::Added(_, resource) = seen else { panic!("{seen:?}") };
            assert_eq!(resource.name, name);
            times.push(at.duration_since(start));
            deliveries += 1;
        }
    }
    let wall = began.elapsed();
    let (cpu, rss) = usage(control.pid());
    times.sort();
    let percentile = |p: usize| times[(times.len() - 1) * p / 100];
    println!(
        "{CHANGES} endpoint changes in {wall:?}: {deliveries} deliveries; change of the file to the client p50 {:?} p99 {:?} max {:?}",
        percentile(50),
        percentile(99),
        percentile(100)
    );
    println!(
        "control plane: {:?} CPU in {wall:?} ({:.2} cores), resident {} MiB",
        cpu - cpu_before,
        (cpu - cpu_before).as_secs_f64() / wall.as_secs_f64(),
        rss / 1024
    );
    assert!(percentile(99) < Duration::from_secs(1));
}

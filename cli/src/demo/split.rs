//! Part 2: the split, the header rule, who the server saw, and what was on the wire.

use weir_sandbox::tap::{FlowReport, Verdict};

use super::{CLIENT, Demo, Step, metrics, view};
use crate::load::Report;

const REQUESTS: u64 = 1000;
/// How far a share may be off, in requests of [`REQUESTS`].
const TOLERANCE: u64 = 15;
/// Ports that the applications listen on.
const APP_PORTS: [u16; 2] = [8080, 6379];

pub(super) fn run(demo: &mut Demo) -> Step {
    view::title("2. 1,000 requests from the client pod to http://catalog/", "4 connections, kept open");
    let pods: Vec<String> =
        demo.client.status()?.pods.keys().filter(|name| name.starts_with("shop/")).cloned().collect();
    let mut taps = Vec::new();
    for pod in &pods {
        taps.push((pod.clone(), demo.client.tap(pod)?));
    }
    split(demo)?;
    redis(demo)?;
    let mut flows = Vec::new();
    for (pod, tap) in taps {
        flows.push((pod, tap.stop()?));
    }
    identity(demo)?;
    wire(demo, &flows)
}

fn split(demo: &mut Demo) -> Step {
    let count = REQUESTS.to_string();
    let report = demo.load(CLIENT, &["http://catalog/", "--requests", &count, "--connections", "4"])?;
    let canary = demo.load(CLIENT, &["http://catalog/", "--requests", "100", "--header", "x-canary: yes"])?;
    let fresh = demo.load(CLIENT, &["http://catalog/", "--requests", "200", "--fresh"])?;
    let got = |report: &Report, version: &str| report.tally.get(version).copied().unwrap_or(0);
    let mut rows = vec![view::row(["", "WANTED v1", "WANTED v2", "GOT v1", "GOT v2", "FAILED", "p50", "p99"])];
    for (name, report, wanted) in [
        ("1,000 requests", &report, (REQUESTS * 9 / 10, REQUESTS / 10)),
        ("100 with x-canary: yes", &canary, (0, 100)),
        ("200 on new connections", &fresh, (180, 20)),
    ] {
        rows.push(view::row([
            name,
            &wanted.0.to_string(),
            &wanted.1.to_string(),
            &got(report, "v1").to_string(),
            &got(report, "v2").to_string(),
            &report.failures.to_string(),
            &view::ms(report.p50_us),
            &view::ms(report.p99_us),
        ]));
    }
    view::rows(&rows);
    let off = got(&report, "v2").abs_diff(REQUESTS / 10);
    demo.expect(
        report.failures == 0 && off <= TOLERANCE && got(&report, "v1") + got(&report, "v2") == REQUESTS,
        &format!("the split is 90/10, off by {off} of 1,000 requests{}", errors(&report)),
    );
    demo.expect(
        canary.failures == 0 && got(&canary, "v2") == 100,
        &format!("the header rule sends every request to v2{}", errors(&canary)),
    );
    demo.expect(fresh.failures == 0, &format!("no request failed on new connections{}", errors(&fresh)));
    Ok(())
}

/// The errors of a load run, for messages.
pub(super) fn errors(report: &Report) -> String {
    if report.failures == 0 {
        return String::new();
    }
    let list: Vec<String> = report.errors.iter().map(|(error, count)| format!("{count} x {error}")).collect();
    format!(" ({} failed: {})", report.failures, list.join("; "))
}

fn redis(demo: &mut Demo) -> Step {
    let mut said = Vec::new();
    for command in [["set", "greeting", "hello"].as_slice(), &["get", "greeting"]] {
        let mut all = vec!["redis-cli", "-h", "redis"];
        all.extend(command);
        let output = demo.run(CLIENT, &all)?;
        said.push(format!("{}{}", output.stdout.trim(), output.stderr.trim()));
    }
    demo.expect(
        said == ["OK", "hello"],
        &format!("redis answers through the proxies: set, get -> {}", said.join(", ")),
    );
    Ok(())
}

/// Who called, as the servers' proxies counted it.
fn identity(demo: &mut Demo) -> Step {
    let wanted = "spiffe://cluster.local/ns/shop/sa/client";
    let status = demo.client.status()?;
    for app in ["catalog", "redis"] {
        let mut seen = std::collections::BTreeSet::new();
        for (name, _) in status.pods.iter().filter(|(_, pod)| pod.labels.get("app").is_some_and(|own| own == app)) {
            for sample in metrics::of(demo, name)? {
                let source = sample.labels.get("source_principal");
                if sample.labels.get("reporter").is_some_and(|reporter| reporter == "destination")
                    && sample.name.ends_with("_total")
                    && let Some(source) = source.filter(|_| sample.value > 0.0)
                {
                    seen.insert(source.clone());
                }
            }
        }
        let list: Vec<&str> = seen.iter().map(String::as_str).collect();
        demo.expect(list == [wanted], &format!("the proxies of {app} saw the caller {}", list.join(", ")));
    }
    Ok(())
}

/// What was on the links between pods.
fn wire(demo: &mut Demo, flows: &[(String, Vec<FlowReport>)]) -> Step {
    let mut rows = vec![view::row([
        "LINK OF",
        "CONNECTIONS",
        "BYTES",
        "TLS RECORDS",
        "TLS",
        "PLAINTEXT",
        "UNCLEAR",
        "FIRST BYTES",
    ])];
    let (mut tls, mut other) = (0, 0);
    for (pod, all) in flows {
        let ours: Vec<&FlowReport> = all
            .iter()
            .filter(|flow| APP_PORTS.contains(&flow.server.port()) && flow.verdict() != Verdict::Empty)
            .collect();
        let with = |verdict| ours.iter().filter(|flow| flow.verdict() == verdict).count();
        let bytes: u64 = ours.iter().map(|flow| flow.sent.bytes + flow.received.bytes).sum();
        let records: u64 = ours.iter().map(|flow| flow.sent.records + flow.received.records).sum();
        let first = ours.first().map(|flow| {
            let hex: Vec<String> = flow.sent.first.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
            hex.join(" ")
        });
        tls += with(Verdict::Tls);
        other += with(Verdict::Plaintext) + with(Verdict::Unclear);
        rows.push(view::row([
            pod,
            &ours.len().to_string(),
            &bytes.to_string(),
            &records.to_string(),
            &with(Verdict::Tls).to_string(),
            &with(Verdict::Plaintext).to_string(),
            &with(Verdict::Unclear).to_string(),
            &first.unwrap_or_default(),
        ]));
    }
    say!("\n  captured on the links between the pods, ports 8080 and 6379:");
    view::rows(&rows);
    demo.expect(
        tls > 0 && other == 0,
        &format!("every byte of all {tls} captured connections belongs to a TLS record, {other} carried anything else"),
    );
    hops(demo, flows)
}

/// Every hop is seen twice: on the client's link, going to the server, and on the server's own.
fn hops(demo: &mut Demo, flows: &[(String, Vec<FlowReport>)]) -> Step {
    let status = demo.client.status()?;
    let mut servers = Vec::new();
    for (name, pod) in &status.pods {
        let app = pod.labels.get("app").filter(|_| name.starts_with("shop/")).map(String::as_str);
        // Which pods of catalog are asked is up to the balancing.
        let asked = match app {
            Some("redis") => true,
            Some("catalog") => metrics::of(demo, name)?.iter().any(|sample| {
                sample.name == "istio_requests_total" && sample.is("reporter", "destination") && sample.value > 0.0
            }),
            _ => false,
        };
        if let (true, Some(address)) = (asked, pod.status.address) {
            servers.push((name, address));
        }
    }
    let tls_to = |link: &str, address| {
        let of_link = flows.iter().filter(|(pod, _)| pod.starts_with(link)).flat_map(|(_, flows)| flows);
        let mut there = of_link.filter(|flow| flow.server.ip() == address && APP_PORTS.contains(&flow.server.port()));
        there.any(|flow| flow.verdict() == Verdict::Tls)
    };
    let without: Vec<&str> = servers
        .iter()
        .filter(|(name, address)| !tls_to("shop/client-", *address) || !tls_to(name, *address))
        .map(|(name, _)| name.as_str())
        .collect();
    let catalogs = servers.iter().filter(|(name, _)| name.starts_with("shop/catalog-")).count();
    let redis = servers.len() - catalogs;
    let missing = if without.is_empty() { String::new() } else { format!(", but not to {}", without.join(", ")) };
    demo.expect(
        catalogs >= 2 && redis == 1 && without.is_empty(),
        &format!(
            "TLS is on both links of every hop: from the client to {catalogs} pods of catalog and to redis{missing}"
        ),
    );
    Ok(())
}

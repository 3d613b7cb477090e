//! Part 3: the rule and the pods change under load.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{CLIENT, Demo, Step, Stop, split::errors, view};
use crate::load::Report;

/// Requests a second during the changes.
const RATE: &str = "1000";
/// Longest time that a change of a rule may take, in milliseconds.
const LIMIT_MS: u64 = 2000;
/// Requests over which a share is taken.
const WINDOW: u64 = 40;
/// Requests by which an even split may be off whatever their number: those under way at its ends.
const FEW: u64 = 10;
/// After an edit is seen in effect, the requests that were under way still have this long, in milliseconds.
const SETTLED_MS: u64 = 100;

pub(super) fn run(demo: &mut Demo) -> Step {
    view::title("3. The rule and the pods change while 1,000 requests a second run", "8 connections");
    rules(demo)?;
    pods(demo)
}

fn rules(demo: &mut Demo) -> Step {
    let mut edits = Vec::new();
    let report = under_load(demo, "4", |demo| {
        pause(demo, Duration::from_millis(700))?;
        edits.push(weights(demo, (90, 10), (50, 50))?);
        pause(demo, Duration::from_millis(1300))?;
        edits.push(weights(demo, (50, 50), (0, 100))?);
        Ok(())
    })?;
    let [first, second] = edits.as_slice() else { return Err(Stop::Failed("the rule was not edited".into())) };
    // The share of v2 rises from a tenth to a half: in effect where it first is above three tenths over some requests.
    let half = report.timeline.keys().copied().find(|piece| {
        at(&report, *piece) >= *first && share_of_v2(&report.timeline, *piece).is_some_and(|share| share > 0.3)
    });
    let last_v1 = report.timeline.iter().rev().find(|(_, counts)| counts.contains_key("v1")).map(|(piece, _)| *piece);
    let half = half.map(|piece| at(&report, piece).saturating_sub(*first));
    let all = last_v1.map(|piece| at(&report, piece).saturating_add(PIECE_MS).saturating_sub(*second));
    let settled = half.map(|took| {
        let from = first.saturating_add(took).saturating_add(SETTLED_MS);
        let between: Vec<&BTreeMap<String, u64>> = report
            .timeline
            .iter()
            .filter(|(piece, _)| (from..*second).contains(&at(&report, **piece)))
            .map(|(_, counts)| counts)
            .collect();
        let of = |version: &str| between.iter().filter_map(|counts| counts.get(version)).sum::<u64>();
        (of("v1"), of("v2"))
    });
    let text = |ms: Option<u64>| ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms"));
    let mut rows = vec![view::row(["EDIT OF THE HTTPROUTE", "IN EFFECT AFTER", "THEN v1", "THEN v2"])];
    let (v1, v2) = settled.unwrap_or_default();
    rows.push(view::row(["90/10 -> 50/50", &text(half), &v1.to_string(), &v2.to_string()]));
    rows.push(view::row(["50/50 -> 0/100", &text(all), "0", "all"]));
    view::rows(&rows);
    let requests = report.requests;
    demo.expect(report.failures == 0, &format!("{requests} requests, {} failed{}", report.failures, errors(&report)));
    let quick = |ms: Option<u64>| ms.is_some_and(|ms| ms <= LIMIT_MS);
    demo.expect(quick(half) && quick(all), &format!("both edits took effect within {} s", LIMIT_MS / 1000));
    let even = v1.abs_diff(v2) <= (v1 + v2) / 20 + FEW;
    demo.expect(even && v1 > 0, "50/50 is an even split");
    weights(demo, (0, 100), (50, 50)).map(|_| ())
}

fn pods(demo: &mut Demo) -> Step {
    let before = demo.client.status()?;
    let mut times = Vec::new();
    let report = under_load(demo, "6", |demo| {
        pause(demo, Duration::from_millis(500))?;
        times.push(("catalog-v1", "one pod removed", scale(demo, "catalog-v1", 2, 1)?));
        pause(demo, Duration::from_millis(500))?;
        times.push(("catalog-v2", "one pod added", scale(demo, "catalog-v2", 1, 2)?));
        Ok(())
    })?;
    let mut rows = vec![view::row(["DEPLOYMENT", "CHANGE", "DONE AFTER"])];
    for (deployment, change, took) in &times {
        rows.push(view::row([deployment, change, &format!("{} ms", took.as_millis())]));
    }
    view::rows(&rows);
    let after = demo.client.status()?;
    let new = after.pods.keys().filter(|name| !before.pods.contains_key(*name)).count();
    let gone = before.pods.keys().filter(|name| !after.pods.contains_key(*name)).count();
    demo.expect(new == 1 && gone == 1, &format!("{gone} pod is gone, {new} is new"));
    let requests = report.requests;
    demo.expect(report.failures == 0, &format!("{requests} requests, {} failed{}", report.failures, errors(&report)));
    Ok(())
}

/// Runs `work` while the client pod sends requests.
fn under_load(demo: &mut Demo, seconds: &str, mut work: impl FnMut(&Demo) -> Step) -> Step<Report> {
    let demo = &*demo;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let arguments = ["http://catalog/", "--seconds", seconds, "--rate", RATE, "--connections", "8"];
            demo.load(CLIENT, &arguments)
        });
        let worked = work(demo);
        let report = load.join().unwrap_or_else(|_| Err(Stop::Failed("the load client's thread panicked".into())));
        worked?;
        demo.go_on()?;
        report
    })
}

fn pause(demo: &Demo, time: Duration) -> Step {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if demo.interrupted.load(Ordering::Relaxed) {
            return Err(Stop::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Edits the weights of the route; when, in milliseconds since 1970.
fn weights(demo: &Demo, from: (u32, u32), to: (u32, u32)) -> Step<u64> {
    let text = |(v1, v2): (u32, u32)| (format!("weight: {v1}\n"), format!("weight: {v2}\n"));
    demo.edit("route.yaml", |before| {
        let (old, new) = (text(from), text(to));
        let marked = before.replacen(&old.0, "weight: first\n", 1).replacen(&old.1, "weight: second\n", 1);
        marked.replacen("weight: first\n", &new.0, 1).replacen("weight: second\n", &new.1, 1)
    })?;
    Ok(now_ms())
}

/// Changes the number of pods of a Deployment and waits until it is so; how long that took.
fn scale(demo: &Demo, deployment: &str, from: usize, to: usize) -> Step<Duration> {
    let begun = Instant::now();
    demo.edit("catalog.yaml", |before| {
        let Some(at) = before.find(&format!("kind: Deployment\nmetadata:\n  name: {deployment}\n")) else {
            return before.to_owned();
        };
        let (head, tail) = before.split_at(at);
        format!("{head}{}", tail.replacen(&format!("replicas: {from}\n"), &format!("replicas: {to}\n"), 1))
    })?;
    let name = format!("shop/{deployment}");
    demo.wait(Duration::from_secs(20), &format!("{deployment} with {to} pods"), |status| {
        let (wanted, current, ready) = status.deployments.get(&name)?;
        let all = status.pods.values().filter(|pod| pod.deployment.as_deref() == Some(deployment)).count();
        (*wanted == to && *current == to && *ready == to && all == to).then_some(())
    })?;
    Ok(begun.elapsed())
}

const PIECE_MS: u64 = 10;

/// When a piece of the timeline began, in milliseconds since 1970.
fn at(report: &Report, piece: u64) -> u64 {
    report.started_ms.saturating_add(piece.saturating_mul(PIECE_MS))
}

/// Share of v2 over the next [`WINDOW`] requests, however long a busy machine takes for them.
#[allow(clippy::cast_precision_loss)] // counts are small
fn share_of_v2(timeline: &BTreeMap<u64, BTreeMap<String, u64>>, from: u64) -> Option<f64> {
    let (mut all, mut v2) = (0_u64, 0_u64);
    for (_, counts) in timeline.range(from..) {
        all += counts.values().sum::<u64>();
        v2 += counts.get("v2").copied().unwrap_or_default();
        if all >= WINDOW {
            return Some(v2 as f64 / all as f64);
        }
    }
    None
}

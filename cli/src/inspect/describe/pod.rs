//! A pod: what the control plane says of it, and what its proxy has answered by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weir_config::describe::{AccessPolicy, Plaintext, Pod};
use weir_mesh::{
    flags::Flag,
    names::{INJECT_ENABLED, INJECT_LABEL},
};

use super::{
    super::{
        or_dash,
        reach::{PodRef, Reach},
    },
    flag, indented, page,
};
use crate::{
    failure::Failure,
    samples::Sample,
    table::{plain, row},
};

/// A pod, and its proxy where it has one.
#[derive(Debug, Serialize)]
pub(super) struct Described {
    pod: Pod,
    proxy: Option<Proxy>,
}

/// What a proxy says of itself.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Proxy {
    /// It can not be asked.
    Silent { trouble: String },
    /// It can.
    Said(Said),
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Said {
    /// Why it is not ready, the redirect among the reasons.
    not_ready: Vec<String>,
    counts: Counts,
}

/// What its metrics count since it started.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    /// Answers of its own, by the rule that the requests took.
    by_rule: Vec<ByRule>,
    /// Requests and connections with a flag.
    by_flag: Vec<ByFlag>,
    /// Callers that no access rule let in.
    access: Vec<Refusals>,
    /// Connections that it refused.
    refused: Vec<Refusals>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ByRule {
    flags: String,
    object: String,
    rule: String,
    count: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct ByFlag {
    flags: String,
    direction: String,
    service: String,
    count: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Refusals {
    by: String,
    reason: String,
    count: u64,
}

pub(super) fn look(reach: &Reach, name: &PodRef) -> Result<Described, Failure> {
    if name.name.contains('/') {
        return Err(Failure::usage(format!("{} is no pod: say pod/NAME", name.name)));
    }
    let pod: Pod = page(reach, "pod", &name.namespace, &name.name)?;
    let proxy = pod.in_mesh.then(|| match ask(reach, name) {
        Ok(said) => Proxy::Said(said),
        Err(error) => Proxy::Silent { trouble: error.to_string() },
    });
    Ok(Described { pod, proxy })
}

fn ask(reach: &Reach, name: &PodRef) -> Result<Said, Failure> {
    let text = |page: &str| reach.proxy(name, page).map(|text| String::from_utf8_lossy(&text).into_owned());
    let ready = text("/ready")?;
    let reasons = ready.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "ready");
    let samples: Vec<Sample> = text("/stats/prometheus")?.lines().filter_map(Sample::parse).collect();
    Ok(Said { not_ready: reasons.map(str::to_owned).collect(), counts: Counts::of(&samples) })
}

impl Counts {
    fn of(samples: &[Sample]) -> Self {
        let named = |name: &'static str| samples.iter().filter(move |sample| sample.name == name);
        let by_rule = named("weir_rule_answers_total").map(|sample| ByRule {
            flags: sample.label("response_flags").to_owned(),
            object: sample.label("object").to_owned(),
            rule: sample.label("route").to_owned(),
            count: whole(sample.value),
        });
        let mut flags: BTreeMap<(String, String, String), u64> = BTreeMap::new();
        let requests = named("istio_requests_total").chain(named("istio_tcp_connections_closed_total"));
        for sample in requests.filter(|sample| !["", "-"].contains(&sample.label("response_flags"))) {
            let direction = if sample.is("reporter", "source") { "outbound" } else { "inbound" };
            let key = (sample.label("response_flags"), direction, sample.label("destination_service"));
            let count = flags.entry((key.0.to_owned(), key.1.to_owned(), key.2.to_owned())).or_default();
            *count = count.saturating_add(whole(sample.value));
        }
        let by_flag =
            flags.into_iter().map(|((flags, direction, service), count)| ByFlag { flags, direction, service, count });
        let access = named("weir_access_refused_total").map(|sample| Refusals {
            by: [sample.label("policy"), sample.label("rule")].join(" rule ").trim_end_matches(" rule ").to_owned(),
            reason: sample.label("reason").replace('_', " "),
            count: whole(sample.value),
        });
        let refused = named("weir_connections_refused_total").map(|sample| Refusals {
            by: sample.label("direction").to_owned(),
            reason: sample.label("reason").replace('_', " "),
            count: whole(sample.value),
        });
        Self {
            by_rule: by_rule.filter(|one| one.count > 0).collect(),
            by_flag: by_flag.filter(|one| one.count > 0).collect(),
            access: access.filter(|one| one.count > 0).collect(),
            refused: refused.filter(|one| one.count > 0).collect(),
        }
    }
}

/// A counter as a number.
fn whole(value: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates; counters are whole and not negative
    let whole = value as u64;
    whole
}

pub(super) fn lines(described: &Described) -> Vec<String> {
    let Described { pod, proxy } = described;
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let ready = if pod.ready { "ready" } else { "not ready" };
    let mut lines = vec![format!("Pod {}/{}: {}, {ready}", pod.namespace, pod.name, or_dash(&addresses.join(", ")))];
    lines.push(match (pod.in_mesh, pod.namespace_injected) {
        (true, _) => format!("In the mesh as {}", pod.identity.as_deref().unwrap_or("nobody")),
        (false, true) => format!(
            "! Not in the mesh, though its namespace is: it was made before, or its label {INJECT_LABEL} says no. Restart it"
        ),
        (false, false) => format!(
            "! Not in the mesh: label its namespace (`kubectl label namespace {} {INJECT_LABEL}={INJECT_ENABLED}`) and restart it",
            pod.namespace
        ),
    });
    match proxy {
        None => {}
        Some(Proxy::Silent { trouble }) => lines.push(plain(&format!("! {trouble}"))),
        Some(Proxy::Said(said)) if said.not_ready.is_empty() => {
            lines.push("Its proxy is ready, and the redirect leads to it".to_owned());
        }
        Some(Proxy::Said(said)) => {
            lines.extend(said.not_ready.iter().map(|reason| plain(&format!("! Its proxy is not ready: {reason}"))));
        }
    }
    lines.push(format!("Services: {}", or_dash(&pod.services.join(", "))));
    lines.push(String::new());
    lines.extend(inbound(pod));
    if let Some(Proxy::Said(said)) = proxy {
        lines.extend(counted(&said.counts));
    }
    lines
}

/// Who may call.
fn inbound(pod: &Pod) -> Vec<String> {
    let plaintext = |plaintext: &Plaintext| {
        let by =
            plaintext.object.as_ref().map_or_else(|| " (nothing says otherwise)".to_owned(), |by| format!(" by {by}"));
        let taken = if plaintext.mode == "STRICT" { "refused" } else { "taken" };
        if pod.in_mesh { format!("{taken}{by}") } else { "taken: no proxy".to_owned() }
    };
    let mut rows = vec![row(&["PORT", "PROTOCOL", "SERVICE", "PLAINTEXT"])];
    for port in &pod.ports {
        let taken = if port.captured || !pod.in_mesh {
            plaintext(&port.plaintext)
        } else {
            "taken: the port is not redirected to the proxy".to_owned()
        };
        let service = port.service.clone().unwrap_or_default();
        rows.push(vec![port.number.to_string(), port.protocol.clone(), or_dash(&service), taken]);
    }
    rows.push(vec!["others".to_owned(), "detect".to_owned(), "-".to_owned(), plaintext(&pod.others)]);
    let mut lines = vec!["Who may call it:".to_owned()];
    lines.extend(indented(&rows));
    if pod.access.is_empty() {
        lines.push("  no AuthorizationPolicy: everybody".to_owned());
    }
    for AccessPolicy { object, action, rules, refused } in &pod.access {
        lines.push(format!("  {object}: {action}, {rules} rules"));
        lines.extend(refused.iter().map(|why| plain(&format!("    ! refused, and closed: {why}"))));
    }
    lines
}

/// What the proxy did itself, with what it means.
fn counted(counts: &Counts) -> Vec<String> {
    let Counts { by_rule, by_flag, access, refused } = counts;
    let mut lines = vec![String::new()];
    if *counts == Counts::default() {
        lines.push("Its proxy has answered or refused nothing by itself since it started.".to_owned());
        return lines;
    }
    let mut flags: BTreeSet<&str> = BTreeSet::new();
    lines.push("What its proxy did itself since it started:".to_owned());
    if !by_rule.is_empty() {
        let mut rows = vec![row(&["COUNT", "FLAG", "RULE"])];
        for one in by_rule {
            flags.extend(one.flags.split(','));
            rows.push(vec![one.count.to_string(), one.flags.clone(), or_dash(&one.rule)]);
        }
        lines.extend(indented(&rows));
    }
    if !by_flag.is_empty() {
        let mut rows = vec![row(&["COUNT", "FLAG", "DIRECTION", "SERVICE"])];
        for one in by_flag {
            flags.extend(one.flags.split(','));
            rows.push(vec![one.count.to_string(), one.flags.clone(), one.direction.clone(), or_dash(&one.service)]);
        }
        lines.extend(indented(&rows));
    }
    for (what, refusals) in [("callers that access rules refused", access), ("connections refused", refused)] {
        if !refusals.is_empty() {
            let mut rows = vec![row(&["COUNT", "BY", "REASON"])];
            rows.extend(refusals.iter().map(|one| row(&[&one.count.to_string(), &one.by, &one.reason])));
            lines.push(format!("  {what}:"));
            lines.extend(indented(&rows));
        }
    }
    let explained: Vec<String> = flags.into_iter().filter_map(Flag::find).flat_map(flag::explain).collect();
    if !explained.is_empty() {
        lines.push(String::new());
        lines.extend(explained);
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STATS: &str = r#"
istio_requests_total{reporter="source",destination_service="catalog.shop.svc.cluster.local",response_code="503",response_flags="UH"} 4
istio_requests_total{reporter="source",destination_service="catalog.shop.svc.cluster.local",response_code="503",response_flags="UF,URX"} 2
istio_requests_total{reporter="source",destination_service="catalog.shop.svc.cluster.local",response_code="200",response_flags="-"} 900
istio_tcp_connections_closed_total{reporter="destination",destination_service="",response_flags="DC"} 1
weir_rule_answers_total{object="HTTPRoute/shop/catalog",route="HTTPRoute/shop/catalog/1/0",response_flags="UH"} 4
weir_access_refused_total{policy="AuthorizationPolicy shop/friends",rule="0",reason="denied_by_rule"} 7
weir_access_refused_total{policy="PeerAuthentication shop/default",rule="",reason="plaintext_refused"} 3
weir_connections_refused_total{direction="outbound",reason="no_answer"} 0
"#;

    fn pod(in_mesh: bool) -> Pod {
        serde_json::from_value(json!({"namespace": "shop", "name": "web", "addresses": ["198.18.0.5"], "in_mesh": in_mesh,
            "namespace_injected": in_mesh, "ready": true, "identity": "spiffe://cluster.local/ns/shop/sa/web", "services": ["shop/web"],
            "ports": [
                {"number": 8080, "protocol": "http", "service": "shop/web", "captured": true,
                    "plaintext": {"mode": "STRICT", "object": "PeerAuthentication/shop/default"}},
                {"number": 9090, "protocol": "detect", "service": null, "captured": false,
                    "plaintext": {"mode": "PERMISSIVE", "object": null}}],
            "others": {"mode": "PERMISSIVE", "object": null},
            "access": [{"object": "AuthorizationPolicy/shop/friends", "action": "ALLOW", "rules": 0, "refused": ["spec.rules[0].to: no"]}]}))
        .unwrap()
    }

    #[test]
    fn a_pod_of_the_mesh_with_what_its_proxy_counted() {
        let samples: Vec<Sample> = STATS.lines().filter_map(Sample::parse).collect();
        let said = Said { not_ready: Vec::new(), counts: Counts::of(&samples) };
        let text = lines(&Described { pod: pod(true), proxy: Some(Proxy::Said(said)) }).join("\n");
        for part in [
            "Pod shop/web: 198.18.0.5, ready\nIn the mesh as spiffe://cluster.local/ns/shop/sa/web\nIts proxy is ready",
            "Services: shop/web",
            "8080    http      shop/web  refused by PeerAuthentication/shop/default",
            "9090    detect    -         taken: the port is not redirected to the proxy",
            "others  detect    -         taken (nothing says otherwise)",
            "AuthorizationPolicy/shop/friends: ALLOW, 0 rules\n    ! refused, and closed: spec.rules[0].to: no",
            "4      UH    HTTPRoute/shop/catalog/1/0",
            "2      UF,URX  outbound   catalog.shop.svc.cluster.local",
            "1      DC      inbound    -",
            "7      AuthorizationPolicy shop/friends rule 0  denied by rule",
            "3      PeerAuthentication shop/default          plaintext refused",
            "\nUH     no endpoint of the service is healthy",
            "\nURX    ",
            "\nDC     ",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("900") && !text.contains("connections refused"), "{text}");
    }

    #[test]
    fn one_outside_and_one_that_is_not_ready() {
        let text = lines(&Described { pod: pod(false), proxy: None }).join("\n");
        assert!(
            text.contains(
                "! Not in the mesh: label its namespace (`kubectl label namespace shop weir.dev/inject=enabled`)"
            ),
            "{text}"
        );
        assert!(text.contains("8080    http      shop/web  taken: no proxy"), "{text}");
        let said = Said { not_ready: vec!["redirect: no rule".into()], counts: Counts::default() };
        let text = lines(&Described { pod: pod(true), proxy: Some(Proxy::Said(said)) }).join("\n");
        assert!(text.contains("! Its proxy is not ready: redirect: no rule"), "{text}");
        assert!(text.contains("has answered or refused nothing by itself"), "{text}");
        let silent = Proxy::Silent { trouble: "no pod".into() };
        assert!(lines(&Described { pod: pod(true), proxy: Some(silent) }).contains(&"! no pod".to_owned()));
    }
}

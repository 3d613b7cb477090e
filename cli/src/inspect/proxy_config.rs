//! `weir proxy-config`: what a pod's proxy has in force, from its admin page `/config_dump`.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{Place, or_dash, print_json};
use crate::{
    failure::Failure,
    table::{self, row},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// POD, POD.NAMESPACE or deploy/NAME
    pod: String,
    /// What to show; a summary where nothing is said
    #[arg(value_enum)]
    part: Option<Part>,
    #[command(flatten)]
    place: Place,
    /// Only of this port
    #[arg(long)]
    port: Option<u16>,
    /// Only of Services whose host holds this text
    #[arg(long, visible_alias = "fqdn", value_name = "HOST")]
    service: Option<String>,
}

/// A part of what a proxy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The pod's own ports, and the destinations that were called
    #[value(alias = "listener", alias = "l")]
    Listeners,
    /// Rules, in the order in which they are tried
    #[value(alias = "route", alias = "r")]
    Routes,
    /// How endpoints are called: balancing, limits, ejection
    #[value(alias = "cluster", alias = "c")]
    Clusters,
    /// Endpoints: address, health, weight, load
    #[value(alias = "endpoint", alias = "e")]
    Endpoints,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let place = &arguments.place;
    let reach = place.reach()?;
    let pod = reach.pod(&arguments.pod, place.namespace.as_deref())?;
    let text = reach.proxy(&pod, "/config_dump")?;
    let dump: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::failed(format!("the proxy's configuration is no JSON: {error}")))?;
    let dump = Filter { port: arguments.port, service: arguments.service.as_deref() }.only(dump);
    if place.is_json() {
        print_json(&part(dump, arguments.part))?;
        return Ok(ExitCode::SUCCESS);
    }
    let tables = match arguments.part {
        None => vec![summary(&format!("{}/{}", pod.namespace, pod.name), &dump)],
        Some(Part::Listeners) => vec![inbound(&dump), outbound(&dump)],
        Some(Part::Routes) => vec![routes(&dump)],
        Some(Part::Clusters) => vec![clusters(&dump)],
        Some(Part::Endpoints) => vec![endpoints(&dump)],
    };
    for (index, rows) in tables.iter().enumerate() {
        if index > 0 {
            say!("");
        }
        table::print(rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// What of the configuration is meant.
struct Filter<'a> {
    port: Option<u16>,
    service: Option<&'a str>,
}

impl Filter<'_> {
    fn only(&self, mut dump: Value) -> Value {
        let keep = |dump: &mut Value, list: &str, is_meant: &dyn Fn(&Value) -> bool| {
            if let Some(list) = dump.get_mut(list).and_then(Value::as_array_mut) {
                list.retain(is_meant);
            }
        };
        let named = |name: &str| {
            let (host, port) = host_and_port(name);
            self.is_meant(&host, &port)
        };
        keep(&mut dump, "inbound", &|port| self.is_meant(text(port, "service"), &number(port, "port")));
        keep(&mut dump, "destinations", &|destination| {
            let port = text(destination, "address").rsplit_once(':').map_or("", |(_, port)| port);
            let clusters = list(destination, "clusters").filter_map(Value::as_str);
            let hosts: Vec<String> = clusters.map(|name| host_and_port(name).0).collect();
            let routes = host_and_port(text(destination, "routes")).0;
            self.is_meant(&[hosts.join(" "), routes].concat(), port)
        });
        keep(&mut dump, "routes", &|routes| named(text(routes, "name")));
        keep(&mut dump, "clusters", &|cluster| named(text(cluster, "name")));
        dump
    }

    fn is_meant(&self, host: &str, port: &str) -> bool {
        self.port.is_none_or(|only| only.to_string() == port) && self.service.is_none_or(|part| host.contains(part))
    }
}

/// Host and port of `HOST:PORT`, or of a cluster's name `outbound|PORT||HOST`.
fn host_and_port(name: &str) -> (String, String) {
    let cluster = name.strip_prefix("outbound|").and_then(|rest| rest.split_once("||"));
    let (host, port) = match cluster {
        Some((port, host)) => (host, port),
        None => name.rsplit_once(':').unwrap_or((name, "")),
    };
    (host.to_owned(), port.to_owned())
}

/// A cluster as `HOST:PORT`.
fn called(cluster: &str) -> String {
    match host_and_port(cluster) {
        (host, port) if port.is_empty() => host,
        (host, port) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        (host, port) => format!("{host}:{port}"),
    }
}

/// The part as the proxy has it.
fn part(dump: Value, part: Option<Part>) -> Value {
    let of = |key: &str| dump.get(key).cloned().unwrap_or_default();
    match part {
        None => dump,
        Some(Part::Listeners) => json!({"inbound": of("inbound"), "destinations": of("destinations")}),
        Some(Part::Routes) => of("routes"),
        Some(Part::Clusters) => {
            let mut clusters = of("clusters");
            let all = clusters.as_array_mut().into_iter().flatten();
            all.filter_map(Value::as_object_mut).for_each(|cluster: &mut Map<String, Value>| {
                cluster.remove("endpoints");
            });
            clusters
        }
        Some(Part::Endpoints) => list(&dump, "clusters")
            .map(|cluster| json!({"cluster": text(cluster, "name"), "endpoints": cluster.get("endpoints")}))
            .collect(),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A number, or a text in its place.
fn number(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

fn is(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn words(value: &Value, key: &str) -> String {
    or_dash(&list(value, key).filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
}

fn summary(pod: &str, dump: &Value) -> Vec<Vec<String>> {
    let count = |key: &str| list(dump, key).count();
    let states = |state: &str| list(dump, "destinations").filter(|one| text(one, "state") == state).count();
    let rules: usize = list(dump, "routes").map(|table| list(table, "rules").count()).sum();
    let all = || list(dump, "clusters").flat_map(|cluster| list(cluster, "endpoints"));
    let ejected = all().filter(|endpoint| is(endpoint, "ejected")).count();
    let unwell = all().filter(|endpoint| !is(endpoint, "well")).count();
    let control = text(dump, "control_plane");
    let control = if control == "connected" { control.to_owned() } else { format!("not connected: {control}") };
    vec![
        row(&["proxy of", pod]),
        row(&["control plane", &control]),
        row(&[
            "own ports",
            &list(dump, "inbound").filter(|port| port.get("port").is_some_and(Value::is_u64)).count().to_string(),
        ]),
        row(&[
            "destinations",
            &format!(
                "{}: {} known, {} of nothing in the mesh, {} without an answer yet",
                count("destinations"),
                states("known"),
                states("unknown"),
                states("waiting")
            ),
        ]),
        row(&["routes", &format!("{rules} in {} tables", count("routes"))]),
        row(&["clusters", &count("clusters").to_string()]),
        row(&["endpoints", &format!("{}: {ejected} ejected, {unwell} not well", all().count())]),
    ]
}

fn inbound(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["OWN PORT", "PROTOCOL", "SERVICE", "PLAINTEXT", "DENY", "ALLOW"])];
    for port in list(dump, "inbound") {
        let access = port.get("access").unwrap_or(&Value::Null);
        let refused = text(access, "plaintext_refused_by");
        let plaintext = if refused.is_empty() { "taken".to_owned() } else { format!("refused by {refused}") };
        // A list that is there and empty lets nobody in; none at all is no question of who calls.
        let allow = match access.get("allow") {
            Some(Value::Array(rules)) if rules.is_empty() => "nobody".to_owned(),
            Some(Value::Array(_)) => words(access, "allow"),
            _ => "all".to_owned(),
        };
        let protocol = or_dash(text(port, "protocol"));
        let service = or_dash(text(port, "service"));
        rows.push(vec![number(port, "port"), protocol, service, plaintext, words(access, "deny"), allow]);
    }
    rows
}

fn outbound(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["DESTINATION", "PROTOCOL", "TO"])];
    for destination in list(dump, "destinations") {
        let (protocol, to) = match text(destination, "state") {
            "known" => {
                let clusters: Vec<String> =
                    list(destination, "clusters").filter_map(Value::as_str).map(called).collect();
                let routes = text(destination, "routes");
                let routes = (!routes.is_empty()).then(|| format!("routes {routes}"));
                let to: Vec<String> = routes.into_iter().chain(clusters).collect();
                (text(destination, "protocol"), to.join(", "))
            }
            "unknown" => ("-", "passed on as it is: nothing in the mesh has this address".to_owned()),
            _ => ("-", "the control plane has not answered yet".to_owned()),
        };
        rows.push(row(&[text(destination, "address"), protocol, &or_dash(&to)]));
    }
    rows
}

fn routes(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["DESTINATION", "ORDER", "MATCHES", "TO", "RULE", "ASKS"])];
    for table in list(dump, "routes") {
        for (index, rule) in list(table, "rules").enumerate() {
            let action = rule.get("action").unwrap_or(&Value::Null);
            let forward: Vec<(u64, String)> = list(action, "forward")
                .map(|to| (to.get("weight").and_then(Value::as_u64).unwrap_or(0), called(text(to, "cluster"))))
                .collect();
            let to = match (forward.as_slice(), action.get("respond"), action.get("redirect")) {
                ([(_, only)], ..) => only.clone(),
                ([], Some(status), _) => format!("answers {status}"),
                ([], None, Some(status)) => format!("redirects {status}"),
                (all, ..) => all.iter().map(|(weight, to)| format!("{weight} {to}")).collect::<Vec<_>>().join(", "),
            };
            let order = (index + 1).to_string();
            rows.push(row(&[
                text(table, "name"),
                &order,
                text(rule, "matches"),
                &or_dash(&to),
                text(rule, "name"),
                &words(rule, "asks"),
            ]));
        }
    }
    rows
}

fn clusters(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["CLUSTER", "ENDPOINTS", "BALANCING", "LIMITS (NOW/MOST)", "EJECTS", "CHECKS"])];
    for cluster in list(dump, "clusters") {
        let limits: Vec<String> = list(cluster, "limits")
            .filter(|limit| limit.get("most").and_then(Value::as_u64) != Some(u32::MAX.into())) // as large as can be: none
            .map(|limit| format!("{} {}/{}", text(limit, "name"), number(limit, "now"), number(limit, "most")))
            .collect();
        let detection = cluster.get("outlier_detection").filter(|detection| !detection.is_null());
        let ejects = detection.map_or_else(
            || "-".to_owned(),
            |detection| {
                let after = [
                    ("consecutive_5xx", "5xx"),
                    ("consecutive_gateway_failure", "of gateways"),
                    ("consecutive_local_origin_failure", "unanswered"),
                ];
                let counts = after.into_iter().map(|(key, word)| (number(detection, key), word));
                let counts: Vec<String> = counts
                    .filter(|(count, _)| !count.is_empty())
                    .map(|(count, word)| format!("{count} {word}"))
                    .collect();
                format!("after {}", counts.join(" or "))
            },
        );
        let checks: Vec<&str> = list(cluster, "health_checks").map(|check| text(check, "asks")).collect();
        rows.push(vec![
            called(text(cluster, "name")),
            list(cluster, "endpoints").count().to_string(),
            text(cluster, "balancing").to_owned(),
            or_dash(&limits.join(", ")),
            ejects,
            or_dash(&checks.join(", ")),
        ]);
    }
    rows
}

fn endpoints(dump: &Value) -> Vec<Vec<String>> {
    let mut rows =
        vec![row(&["CLUSTER", "ENDPOINT", "POD", "STATE", "WEIGHT", "PRIORITY", "LOCALITY", "ACTIVE", "IDENTITY"])];
    for cluster in list(dump, "clusters") {
        for endpoint in list(cluster, "endpoints") {
            let state = match (is(endpoint, "well"), is(endpoint, "ejected"), is(endpoint, "avoided")) {
                (false, ..) => "not well",
                (true, true, _) => "ejected",
                (true, false, true) => "avoided",
                (true, false, false) => "in use",
            };
            let identity = text(endpoint, "identity");
            rows.push(vec![
                called(text(cluster, "name")),
                text(endpoint, "address").to_owned(),
                or_dash(text(endpoint, "pod")),
                state.to_owned(),
                number(endpoint, "weight"),
                number(endpoint, "priority"),
                or_dash(text(endpoint, "locality").trim_end_matches('/')), // parts that are not said are empty
                number(endpoint, "in_flight"),
                if identity.is_empty() { "plaintext: no proxy".to_owned() } else { identity.to_owned() },
            ]);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump() -> Value {
        json!({
            "control_plane": "connected",
            "inbound": [
                {"port": 8080, "protocol": "http", "service": "web.shop.svc.cluster.local",
                    "access": {"plaintext_refused_by": "PeerAuthentication shop/default", "deny": [], "allow": ["shop/friends/0"]}},
                {"port": "others", "access": {"plaintext_refused_by": null, "deny": ["shop/no/1"], "allow": null}},
            ],
            "destinations": [
                {"address": "198.19.0.7:80", "state": "known", "protocol": "http", "routes": "catalog.shop.svc.cluster.local:80"},
                {"address": "198.19.0.8:5432", "state": "known", "protocol": "opaque", "clusters": ["outbound|5432||db.shop.svc.cluster.local"]},
                {"address": "203.0.113.1:443", "state": "unknown"},
                {"address": "198.19.0.9:80", "state": "waiting"},
            ],
            "routes": [{"name": "catalog.shop.svc.cluster.local:80", "rules": [
                {"name": "HTTPRoute/shop/catalog/0/0", "object": "HTTPRoute/shop/catalog", "matches": "header x-canary = yes",
                    "action": {"forward": [{"cluster": "outbound|80||v2.shop.svc.cluster.local", "weight": 1}]}, "asks": ["timeout 5s"]},
                {"name": "HTTPRoute/shop/catalog/1/0", "matches": "any", "action": {"forward": [
                    {"cluster": "outbound|80||v1.shop.svc.cluster.local", "weight": 90},
                    {"cluster": "outbound|80||v2.shop.svc.cluster.local", "weight": 10}]}, "asks": []},
                {"name": "HTTPRoute/shop/catalog/2/0", "matches": "exact /x", "action": {"respond": 500}, "asks": []},
            ]}],
            "clusters": [{
                "name": "outbound|80||v2.shop.svc.cluster.local", "balancing": "least_request",
                "limits": [{"name": "max_connections", "most": u32::MAX, "now": 3}, {"name": "max_requests", "most": 100, "now": 3}],
                "outlier_detection": {"consecutive_5xx": 5, "consecutive_gateway_failure": null},
                "health_checks": [{"asks": "http /healthz"}],
                "endpoints": [
                    {"address": "198.18.0.5:8080", "identity": "spiffe://cluster.local/ns/shop/sa/web", "pod": "v2-1", "weight": 1,
                        "priority": 0, "locality": "eu/a/", "ejected": true, "well": true, "avoided": false, "in_flight": 2},
                    {"address": "[fd00::5]:8080", "identity": null, "pod": "", "weight": 1, "priority": 0, "locality": "",
                        "ejected": false, "well": false, "avoided": false, "in_flight": 0},
                ],
            }],
        })
    }

    fn shown(rows: &[Vec<String>]) -> Vec<String> {
        table::lines(rows)
    }

    fn all(filter: &Filter<'_>) -> Vec<String> {
        let dump = filter.only(dump());
        [inbound(&dump), outbound(&dump), routes(&dump), clusters(&dump), endpoints(&dump)]
            .iter()
            .flat_map(|rows| shown(rows))
            .collect()
    }

    #[test]
    fn tables_name_what_is_in_force() {
        let text = all(&Filter { port: None, service: None }).join("\n");
        for part in [
            "8080      http      web.shop.svc.cluster.local  refused by PeerAuthentication shop/default  -          shop/friends/0",
            "others    -         -                           taken                                       shop/no/1  all",
            "198.19.0.7:80    http      routes catalog.shop.svc.cluster.local:80",
            "198.19.0.8:5432  opaque    db.shop.svc.cluster.local:5432",
            "203.0.113.1:443  -         passed on as it is",
            "the control plane has not answered yet",
            "1      header x-canary = yes  v2.shop.svc.cluster.local:80 ",
            "HTTPRoute/shop/catalog/0/0  timeout 5s",
            "90 v1.shop.svc.cluster.local:80, 10 v2.shop.svc.cluster.local:80",
            "answers 500",
            "least_request  max_requests 3/100  after 5 5xx  http /healthz",
            "198.18.0.5:8080  v2-1  ejected   1       0         eu/a      2       spiffe://cluster.local/ns/shop/sa/web",
            "[fd00::5]:8080   -     not well  1       0         -         0       plaintext: no proxy",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn filters_are_by_port_and_by_a_part_of_the_host() {
        let by = |port, service| {
            let lines = all(&Filter { port, service });
            lines.len() - 5 // the heads
        };
        assert_eq!(by(None, None), 2 + 4 + 3 + 1 + 2);
        assert_eq!(by(Some(5432), None), 1);
        assert_eq!(by(Some(80), None), 2 + 3 + 1 + 2);
        assert_eq!(by(None, Some("catalog.shop")), 1 + 3);
        assert_eq!(by(None, Some("v2.")), 1 + 2);
        assert_eq!(by(Some(81), Some("v2.")), 0);
    }

    #[test]
    fn a_summary_counts() {
        let text = shown(&summary("shop/web", &dump())).join("\n");
        for part in [
            "own ports      1",
            "destinations   4: 2 known, 1 of nothing in the mesh, 1 without an answer yet",
            "routes         3 in 1 tables",
            "endpoints      2: 1 ejected, 1 not well",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let away = shown(&summary("shop/web", &json!({"control_plane": "refused"}))).join("\n");
        assert!(away.contains("control plane  not connected: refused"), "{away}");
    }

    #[test]
    fn anything_else_is_shown_as_nothing() {
        for odd in
            [json!(null), json!([]), json!({"routes": 7, "clusters": [1], "inbound": "x", "destinations": [null]})]
        {
            let dump = Filter { port: Some(1), service: Some("x") }.only(odd);
            let tables = [inbound(&dump), outbound(&dump), routes(&dump), clusters(&dump), endpoints(&dump)];
            assert!(tables.iter().all(|rows| rows.len() == 1), "{tables:?}");
        }
    }

    #[test]
    fn json_is_the_part() {
        let value = part(dump(), Some(Part::Endpoints));
        assert_eq!(value[0]["endpoints"][0]["pod"], "v2-1");
        let value = part(dump(), Some(Part::Clusters));
        assert_eq!(value[0]["balancing"], "least_request");
        assert!(value[0].get("endpoints").is_none());
    }
}

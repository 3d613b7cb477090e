//! A Service, for people.

use weir_config::describe::{Callers, Port, Service};

use super::{indented, rules, settings, troubles, without_effect};

pub(super) fn lines(service: &Service) -> Vec<String> {
    let Service { namespace, name, addresses, ports, without_effect: idle } = service;
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() {
        "no address of its own: callers reach its pods, without rules".to_owned()
    } else {
        addresses.join(", ")
    };
    let mut lines = vec![format!("Service {namespace}/{name}: {addresses}")];
    for port in ports {
        lines.extend(of_port(&format!("{namespace}/{name}"), port));
    }
    if !idle.is_empty() {
        lines.push(String::new());
        lines.push("Without any effect:".to_owned());
        lines.extend(without_effect(idle).map(|line| format!("  {line}")));
    }
    lines
}

fn of_port(service: &str, port: &Port) -> Vec<String> {
    let own = &format!("{service}:{}", port.number);
    let name = if port.name.is_empty() { String::new() } else { format!(" {}", port.name) };
    let speaks = match port.protocol.as_str() {
        "http" => "HTTP",
        "opaque" => "passed on as it is",
        _ => "found out from the first bytes",
    };
    let mut lines = Vec::new();
    let common = port.callers.first();
    for callers in &port.callers {
        lines.push(String::new());
        lines.push(match &callers.namespace {
            None => format!("Port {}{name}: {speaks}, endpoints: {}", port.number, port.endpoints),
            Some(namespace) => format!("Port {}{name}, for callers of namespace {namespace}", port.number),
        });
        lines.extend(of_callers(own, callers, common.filter(|common| *common != callers)));
    }
    lines
}

/// What is the same for callers of a namespace as for all is not said again.
fn of_callers(own: &str, callers: &Callers, common: Option<&Callers>) -> Vec<String> {
    let mut lines = Vec::new();
    if common.is_some_and(|common| common.rules == callers.rules) {
        lines.push("  rules as for all".to_owned());
    } else if callers.rules.is_empty() {
        lines.push("  no rules: everything goes to its own endpoints".to_owned());
        if !callers.request_settings.is_empty() {
            lines.extend(indented(&settings(&callers.request_settings)));
        }
    } else {
        lines.extend(indented(&rules(&callers.rules, |_| true)));
        lines.extend(troubles(&callers.rules, |_| true).into_iter().map(|line| format!("  {line}")));
    }
    if common.is_some_and(|common| common.settings == callers.settings) {
        if !callers.settings.is_empty() {
            lines.push("  policies as for all".to_owned());
        }
    } else if !callers.settings.is_empty() {
        lines.push("  How its own endpoints are called:".to_owned());
        lines.extend(indented(&settings(&callers.settings)));
        if !callers.rules.is_empty()
            && !callers.rules.iter().flat_map(|rule| &rule.backends).any(|to| to.service == own)
        {
            lines.push(format!("  ! none of these rules sends to {own}, which this is for"));
        }
    }
    let idle =
        callers.without_effect.iter().filter(|one| common.is_none_or(|common| !common.without_effect.contains(one)));
    let idle: Vec<_> = idle.cloned().collect();
    lines.extend(without_effect(&idle).map(|line| format!("  {line}")));
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines_of(value: serde_json::Value) -> String {
        lines(&serde_json::from_value(value).unwrap()).join("\n")
    }

    #[test]
    fn rules_are_named_with_their_order_and_what_is_wrong_with_them() {
        let rule = |place, object: &str, rule, matches: &str, backends, shadow| {
            json!({"place": place, "object": object, "rule": rule, "name": null, "match": 0, "matches": matches, "does": ["timeout 5s"],
                "backends": backends, "shadowed_by": shadow,
                "settings": [{"field": "rateLimit", "value": "10 in 1s, burst 10", "object": "TrafficPolicy/shop/calm"}]})
        };
        let backend = |service: &str, weight, trouble: Option<&str>| json!({"service": service, "weight": weight, "endpoints": 1, "trouble": trouble});
        let object = "HTTPRoute/shop/catalog";
        let all = json!({"namespace": null, "settings": [
            {"field": "connectionPool.tcp.maxConnections", "value": "5", "object": "DestinationRule/shop/catalog"}],
        "request_settings": [], "without_effect": [{"object": "TCPRoute/shop/t", "reason": "HTTPRoute/shop/catalog goes before"}],
        "rules": [
            rule(1, object, 0, "header x = 1", json!([backend("shop/v1:80", 90, None), backend("shop/gone:80", 10, Some("there is no Service"))]), json!(null)),
            rule(2, object, 1, "any", json!([backend("shop/v1:80", 1, None)]), json!(null)),
            rule(3, "HTTPRoute/shop/late", 0, "any", json!([backend("shop/v1:80", 1, None)]), json!({"place": 2, "object": object, "rule": 1})),
        ]});
        let mut web = all.clone();
        web["namespace"] = json!("web");
        web["rules"] = json!([]);
        let text = lines_of(json!({"namespace": "shop", "name": "catalog", "addresses": ["198.19.0.7"],
            "ports": [{"number": 80, "name": "http", "protocol": "http", "endpoints": 2, "callers": [all, web]}],
            "without_effect": [{"object": "HTTPRoute/shop/bad", "reason": "refused: spec.hostnames: no"}]}));
        for part in [
            "Service shop/catalog: 198.19.0.7",
            "Port 80 http: HTTP, endpoints: 2",
            "1      header x = 1        ",
            "90 shop/v1:80, 10 shop/gone:80",
            "HTTPRoute/shop/catalog rule 0  timeout 5s; rateLimit 10 in 1s, burst 10",
            "any: never, 2 takes it",
            "! HTTPRoute/shop/catalog rule 0: backend shop/gone:80: there is no Service",
            "! HTTPRoute/shop/late rule 0 (any) never acts: HTTPRoute/shop/catalog rule 1, which is 2 in the order, takes all",
            "connectionPool.tcp.maxConnections  5      DestinationRule/shop/catalog",
            "! none of these rules sends to shop/catalog:80, which this is for",
            "! TCPRoute/shop/t has no effect: HTTPRoute/shop/catalog goes before",
            "Port 80 http, for callers of namespace web\n  no rules: everything goes to its own endpoints\n  policies as for all",
            "  ! HTTPRoute/shop/bad has no effect: refused: spec.hostnames: no",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_headless_service_has_no_rules() {
        let text = lines_of(json!({"namespace": "a", "name": "b", "addresses": [], "ports": [], "without_effect": []}));
        assert_eq!(text, "Service a/b: no address of its own: callers reach its pods, without rules");
    }
}

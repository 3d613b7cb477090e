//! A route, for people.

use weir_config::describe::{Condition, Parent, Route};

use super::{indented, rules, troubles};
use crate::table::plain;

pub(super) fn lines(route: &Route) -> Vec<String> {
    let mut lines = vec![route.object.clone()];
    for reason in &route.refused {
        lines.push(plain(&format!("! refused: {reason}")));
    }
    match (route.refused.is_empty(), route.parents.is_empty()) {
        (false, true) => lines.push("It has no effect as a whole.".to_owned()),
        (false, false) => lines.push("What it was before stays in force:".to_owned()),
        (true, _) => {}
    }
    if let Some(resolved) = &route.resolved {
        lines.push(condition("ResolvedRefs", resolved));
    }
    for parent in &route.parents {
        lines.push(String::new());
        lines.extend(of_parent(&route.object, parent));
    }
    lines
}

fn of_parent(object: &str, parent: &Parent) -> Vec<String> {
    let port = parent.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let callers = parent.callers.as_ref().map(|namespace| format!(", for callers of namespace {namespace} only"));
    let mut lines = vec![
        format!("Service {}{port}{}", parent.service, callers.unwrap_or_default()),
        format!("  {}", condition("Accepted", &parent.accepted)),
    ];
    for port in &parent.ports {
        let own = || port.rules.iter().filter(|rule| rule.object == object);
        let others = port.rules.len().saturating_sub(own().count());
        if let Some(reason) = &port.without_effect {
            lines.push(plain(&format!("  ! port {}: no effect: {reason}", port.number)));
            continue;
        }
        let among = if others == 0 { String::new() } else { format!(", {others} of other objects among them") };
        lines.push(format!("  port {}, of {} rules in order{among}:", port.number, port.rules.len()));
        // What takes their requests is shown as well.
        let before: Vec<usize> = own().filter_map(|rule| Some(rule.shadowed_by.as_ref()?.place)).collect();
        let is_meant = |rule: &weir_config::describe::Rule| rule.object == object || before.contains(&rule.place);
        lines.extend(indented(&rules(&port.rules, is_meant)));
        lines.extend(troubles(&port.rules, |rule| rule.object == object).into_iter().map(|line| format!("  {line}")));
    }
    lines
}

fn condition(kind: &str, condition: &Condition) -> String {
    let Condition { holds, reason, message } = condition;
    let mark = if *holds { "" } else { "! " };
    let verdict = if *holds { "yes" } else { "no" };
    plain(&format!("{mark}{kind}: {verdict} ({reason}): {message}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lines_of(value: Value) -> String {
        lines(&serde_json::from_value(value).unwrap()).join("\n")
    }

    #[test]
    fn its_rules_have_their_places_among_all() {
        let rule = |place, object: &str, shadow: Value| {
            json!({"place": place, "object": object, "rule": 0, "name": "front", "match": 0, "matches": "any", "does": [],
                "backends": [], "shadowed_by": shadow, "settings": []})
        };
        let shadow = json!({"place": 2, "object": "HTTPRoute/shop/old", "rule": 0});
        let yes = json!({"holds": true, "reason": "Accepted", "message": "the rules are in force"});
        let no = json!({"holds": false, "reason": "BackendNotFound", "message": "there is no Service shop/x"});
        let text = lines_of(json!({"object": "HTTPRoute/web/new", "refused": [], "resolved": no, "parents": [
            {"service": "shop/catalog", "port": null, "callers": "web", "accepted": yes, "ports": [
                {"number": 80, "without_effect": null, "rules": [
                    rule(1, "HTTPRoute/shop/other", json!(null)), rule(2, "HTTPRoute/shop/old", json!(null)), rule(3, "HTTPRoute/web/new", shadow)]},
                {"number": 81, "without_effect": "the port does not speak HTTP", "rules": []}]}]}));
        for part in [
            "! ResolvedRefs: no (BackendNotFound): there is no Service shop/x",
            "Service shop/catalog, for callers of namespace web only\n  Accepted: yes (Accepted): the rules are in force",
            "port 80, of 3 rules in order, 2 of other objects among them:",
            "3      any: never, 2 takes it  -   HTTPRoute/web/new rule 0 (front)",
            "! HTTPRoute/web/new rule 0 (any) never acts: HTTPRoute/shop/old rule 0",
            "! port 81: no effect: the port does not speak HTTP",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("HTTPRoute/shop/other"), "{text}");
    }

    #[test]
    fn a_refused_one_says_why() {
        let text = lines_of(
            json!({"object": "HTTPRoute/shop/a", "refused": ["spec.hostnames: no"], "resolved": null, "parents": []}),
        );
        assert_eq!(text, "HTTPRoute/shop/a\n! refused: spec.hostnames: no\nIt has no effect as a whole.");
    }
}

//! Rules as they are applied: what can not be done is refused with every reason at once. Should one be stored all the same, the
//! control plane closes an access rule whole, and gives a rule for traffic no effect.

use serde_json::Value;
use weir_config::{
    frontend::gateway::only_ours,
    gateway, istio,
    manifest::{Source, parse_value, trim},
    security, traffic,
};

/// What the API calls the kinds, by group.
const RESOURCES: [(&str, &[&str]); 4] = [
    (security::GROUP, &["peerauthentications", "authorizationpolicies"]),
    (gateway::GROUP, &["httproutes", "grpcroutes", "tlsroutes", "tcproutes"]),
    (istio::GROUP, &["destinationrules"]),
    (traffic::GROUP, &["trafficpolicies"]),
];

/// True for a resource that is looked at here.
pub(crate) fn is_rule(group: &str, resource: &str) -> bool {
    RESOURCES.iter().any(|(known, resources)| *known == group && resources.contains(&resource))
}

/// Says why an object can not be accepted; the reasons, a line each with field and remedy.
pub(crate) fn check(object: &Value) -> Result<(), String> {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return Ok(()); // it goes: only its finalizers change
    }
    let mut object = object.clone();
    trim(&mut object);
    if !only_ours(&mut object) {
        return Ok(());
    }
    match parse_value(object, Source::named("admission")) {
        Ok(_) => Ok(()),
        Err(problems) => {
            let reasons = problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message));
            Err(reasons.collect::<Vec<_>>().join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(spec: Value) -> Value {
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "p", "namespace": "shop", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{}], "annotations": {"a": "b"}},
            "spec": spec, "status": {"anything": 1}})
    }

    #[test]
    fn what_can_be_enforced_is_accepted() {
        let mut accepted = policy(json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}));
        assert_eq!(check(&accepted), Ok(()));
        accepted["apiVersion"] = "security.istio.io/v1beta1".into();
        assert_eq!(check(&accepted), Ok(()));
    }

    #[test]
    fn every_reason_is_said_with_its_field() {
        let rules = json!([{"to": [{"operation": {"methods": ["GET"]}}]}, {"form": []}]);
        let reasons = check(&policy(json!({"action": "DENY", "rules": rules}))).unwrap_err();
        for part in ["spec.rules[0].to[0].operation.methods", "spec.rules[1].form"] {
            assert!(reasons.contains(part), "{reasons}");
        }
    }

    #[test]
    fn rules_for_traffic_are_looked_at_as_far_as_they_are_ours() {
        let route = |parents: Value, hostnames: Value, code: u16| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r", "namespace": "shop"},
                "spec": {"parentRefs": parents, "hostnames": hostnames, "rules": [{"filters": [{"type": "RequestRedirect",
                    "requestRedirect": {"statusCode": code}}]}]}})
        };
        let (gateway, service) = (json!({"name": "edge"}), json!({"group": "", "kind": "Service", "name": "web"}));
        assert_eq!(check(&route(json!([service]), json!([]), 302)), Ok(()));
        assert_eq!(check(&route(json!([gateway]), json!(["a.example"]), 399)), Ok(()), "another controller's");
        assert_eq!(check(&route(json!([gateway, service]), json!(["a.example"]), 302)), Ok(()), "the Gateway's names");
        let refused = check(&route(json!([gateway, service]), json!([]), 399)).unwrap_err();
        assert!(refused.contains("spec.rules[0].filters[0].requestRedirect.statusCode"), "{refused}");
        assert!(check(&route(json!([service]), json!(["a.example"]), 302)).unwrap_err().contains("spec.hostnames"));
        let rule = |policy: Value| {
            json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "DestinationRule", "metadata": {"name": "d", "namespace": "shop"},
                "spec": {"host": "web", "trafficPolicy": policy}})
        };
        assert_eq!(check(&rule(json!({"loadBalancer": {"simple": "RANDOM"}}))), Ok(()));
        let refused = check(&rule(json!({"tls": {"mode": "SIMPLE"}}))).unwrap_err();
        assert!(refused.starts_with("spec.trafficPolicy.tls: is not supported: "), "{refused}");
    }

    #[test]
    fn what_is_being_deleted_can_lose_its_finalizers() {
        let mut going = policy(json!({"action": "CUSTOM"}));
        assert!(check(&going).is_err());
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(check(&going), Ok(()));
    }
}

//! Access rules as they are applied: what can not be enforced is refused with every reason at once. Should one be stored all the same,
//! the control plane closes it whole.

use serde_json::Value;
use weir_config::{
    manifest::{Source, parse_value, trim},
    security,
};

/// What the API calls the kinds.
const RESOURCES: [&str; 2] = ["peerauthentications", "authorizationpolicies"];

/// True for a resource that is looked at here.
pub(crate) fn is_rule(group: &str, resource: &str) -> bool {
    group == security::GROUP && RESOURCES.contains(&resource)
}

/// Says why an object can not be accepted; the reasons, a line each with field and remedy.
pub(crate) fn check(object: &Value) -> Result<(), String> {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return Ok(()); // it goes: only its finalizers change
    }
    let mut object = object.clone();
    trim(&mut object);
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
    fn what_is_being_deleted_can_lose_its_finalizers() {
        let mut going = policy(json!({"action": "CUSTOM"}));
        assert!(check(&going).is_err());
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(check(&going), Ok(()));
    }
}

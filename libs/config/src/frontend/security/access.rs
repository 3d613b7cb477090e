//! The rules of an AuthorizationPolicy.

use serde_json::{Map, Value as Json};

use super::Reader;
use crate::{
    model::{AccessAction, AccessRule, Name, Selection, Term, Test},
    path::FieldPath,
};

/// Most rules of a policy, sources or operations of a rule (512 in Istio's API), and values of a field.
const MAX_RULES: usize = 512;
const MAX_VALUES: usize = 4096;
/// Most service accounts of a field (Istio's limit).
const MAX_ACCOUNTS: usize = 16;

const HTTP: &str = "it looks at HTTP requests, and rules are enforced on connections";
const TARGET: &str = "use selector, with the labels of the workloads";
/// Fields of a policy that Istio has besides.
const OF_POLICY: [(&str, &str); 3] =
    [("targetRef", TARGET), ("targetRefs", TARGET), ("provider", "there is no external authorization")];
/// The same of a source.
const OF_SOURCE: [(&str, &str); 6] = [
    ("remoteIpBlocks", "it looks at x-forwarded-for; ipBlocks is the address that the connection comes from"),
    ("notRemoteIpBlocks", "it looks at x-forwarded-for; notIpBlocks is the address that the connection comes from"),
    ("requestPrincipals", HTTP),
    ("notRequestPrincipals", HTTP),
    ("trustDomains", "use principals, such as cluster.local/*"),
    ("notTrustDomains", "use notPrincipals, such as cluster.local/*"),
];
/// The same of an operation.
const OF_OPERATION: [(&str, &str); 6] =
    [("hosts", HTTP), ("notHosts", HTTP), ("methods", HTTP), ("notMethods", HTTP), ("paths", HTTP), ("notPaths", HTTP)];

/// What the values of a field are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Principal,
    Namespace,
    Account,
    Source,
    Destination,
    Port,
}

/// Fields of a source and of an operation: values that are meant, values that are not, and what they are.
const SOURCE: [(&str, &str, Of); 4] = [
    ("principals", "notPrincipals", Of::Principal),
    ("namespaces", "notNamespaces", Of::Namespace),
    ("serviceAccounts", "notServiceAccounts", Of::Account),
    ("ipBlocks", "notIpBlocks", Of::Source),
];
const OPERATION: [(&str, &str, Of); 1] = [("ports", "notPorts", Of::Port)];
/// Keys of `when`.
const KEYS: [(&str, Of); 6] = [
    ("source.principal", Of::Principal),
    ("source.namespace", Of::Namespace),
    ("source.serviceAccount", Of::Account),
    ("source.ip", Of::Source),
    ("destination.ip", Of::Destination),
    ("destination.port", Of::Port),
];

/// Reads the `spec` of a policy.
pub(super) fn read(reader: &mut Reader, own: &Name, spec: &Json) -> (Selection, AccessAction, Vec<AccessRule>) {
    let at = FieldPath::of("spec");
    let spec = reader.object(spec, &at, &["selector", "action", "rules"], &OF_POLICY);
    // What a policy is for instead of workloads of its namespace is not known here.
    let elsewhere = spec.is_some_and(|spec| spec.contains_key("targetRef") || spec.contains_key("targetRefs"));
    let selection = match reader.selection(spec, &at) {
        Selection::All if elsewhere => Selection::Unknown,
        selection => selection,
    };
    let action = spec.and_then(|spec| spec.get("action"));
    let action = action.map_or(AccessAction::Allow, |action| read_action(reader, action, &at.key("action")));
    let at = at.key("rules");
    let rules = match spec.and_then(|spec| spec.get("rules")) {
        // No rules have a meaning of their own: nothing matches.
        Some(Json::Array(rules)) if rules.is_empty() => &[],
        Some(rules) => reader.list(rules, &at, MAX_RULES),
        None => &[],
    };
    let rules = rules.iter().enumerate().map(|(i, rule)| read_rule(reader, own, rule, &at.index(i)));
    (selection, action, rules.collect())
}

fn read_action(reader: &mut Reader, action: &Json, at: &FieldPath) -> AccessAction {
    match action.as_str() {
        Some("ALLOW") => AccessAction::Allow,
        Some("DENY") => AccessAction::Deny,
        Some("AUDIT") => {
            reader.error(
                at.clone(),
                "AUDIT is not supported: refused connections are always logged, others by the access log",
            );
            AccessAction::Nothing
        }
        Some("CUSTOM") => {
            reader.error(at.clone(), "CUSTOM is not supported: there is no external authorization");
            AccessAction::Deny
        }
        _ => {
            reader.error(at.clone(), "is not one of ALLOW and DENY");
            AccessAction::Deny
        }
    }
}

fn read_rule(reader: &mut Reader, own: &Name, rule: &Json, at: &FieldPath) -> AccessRule {
    let mut read = AccessRule::default();
    let Some(rule) = entry(reader, rule, at, &["from", "to", "when"]) else { return read };
    for (field, inner) in [("from", "source"), ("to", "operation")] {
        let Some(list) = rule.get(field) else { continue };
        let at = at.key(field);
        for (i, value) in reader.list(list, &at, MAX_RULES).iter().enumerate() {
            let at = at.index(i);
            let Some(entry) = entry(reader, value, &at, &[inner]) else { continue };
            let at = at.key(inner);
            let Some(value) = entry.get(inner) else {
                reader.error(at, "is missing");
                continue;
            };
            if field == "from" {
                read.sources.push(read_fields(reader, own, value, &at, &SOURCE, &OF_SOURCE));
            } else {
                read.operations.push(read_fields(reader, own, value, &at, &OPERATION, &OF_OPERATION));
            }
        }
    }
    if let Some(list) = rule.get("when") {
        let at = at.key("when");
        let list = reader.list(list, &at, MAX_RULES);
        read.conditions =
            list.iter().enumerate().map(|(i, value)| read_when(reader, own, value, &at.index(i))).collect();
    }
    read
}

/// An entry of a list, which must be a map.
fn entry<'a>(reader: &mut Reader, value: &'a Json, at: &FieldPath, known: &[&str]) -> Option<&'a Map<String, Json>> {
    let entry = reader.object(value, at, known, &[]);
    if value.is_null() {
        reader.error(at.clone(), "is null: leave it out");
    }
    entry
}

fn read_fields(
    reader: &mut Reader,
    own: &Name,
    value: &Json,
    at: &FieldPath,
    fields: &[(&str, &str, Of)],
    unsupported: &[(&str, &str)],
) -> Vec<Term> {
    let known: Vec<&str> = fields.iter().flat_map(|(any, none, _)| [*any, *none]).collect();
    let Some(object) = reader.object(value, at, &known, unsupported) else { return Vec::new() };
    if object.is_empty() {
        reader.error(at.clone(), "has no fields: leave it out where everything is meant");
    }
    let has = |any: &str| object.contains_key(any);
    if (has("serviceAccounts") || has("notServiceAccounts"))
        && ["principals", "notPrincipals", "namespaces", "notNamespaces"].into_iter().any(has)
    {
        reader
            .error(at.clone(), "names service accounts besides principals or namespaces; Istio allows one of the two");
    }
    let mut terms = Vec::new();
    for (any, none, of) in fields {
        let mut values = |field: &str| {
            object.get(field).map_or_else(Vec::new, |values| read_values(reader, own, values, &at.key(field), *of))
        };
        let term = Term { any: values(any), none: values(none) };
        if term != Term::default() {
            terms.push(term);
        }
    }
    terms
}

fn read_when(reader: &mut Reader, own: &Name, value: &Json, at: &FieldPath) -> Term {
    let Some(object) = entry(reader, value, at, &["key", "values", "notValues"]) else { return Term::default() };
    let key = object.get("key").and_then(|key| reader.text(key, &at.key("key"))).unwrap_or_default();
    let Some((_, of)) = KEYS.iter().find(|(known, _)| *known == key) else {
        let known: Vec<&str> = KEYS.iter().map(|(key, _)| *key).collect();
        let why = format!("is not supported: rules are enforced on connections; known are {}", known.join(", "));
        reader.error(at.key("key"), why);
        return Term::default();
    };
    if !object.contains_key("values") && !object.contains_key("notValues") {
        reader.error(at.key("values"), "is missing, and so is notValues");
    }
    let mut values = |field: &str| {
        object.get(field).map_or_else(Vec::new, |values| read_values(reader, own, values, &at.key(field), *of))
    };
    Term { any: values("values"), none: values("notValues") }
}

fn read_values(reader: &mut Reader, own: &Name, values: &Json, at: &FieldPath, of: Of) -> Vec<Test> {
    let max = if of == Of::Account { MAX_ACCOUNTS } else { MAX_VALUES };
    let mut tests = Vec::new();
    for (i, value) in reader.list(values, at, max).iter().enumerate() {
        let at = at.index(i);
        let Some(text) = reader.text(value, &at) else { continue };
        let test = match of {
            Of::Principal => reader.principal(text, &at).map(Test::Principal),
            Of::Namespace => reader.namespace(text, &at).map(Test::Namespace),
            Of::Account => reader.service_account(text, own, &at).map(Test::ServiceAccount),
            Of::Source => reader.addresses(text, &at).map(Test::SourceIp),
            Of::Destination => reader.addresses(text, &at).map(Test::DestinationIp),
            Of::Port => reader.port(text, &at).map(Test::Port),
        };
        tests.extend(test);
    }
    tests
}

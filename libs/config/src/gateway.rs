//! Gateway API's HTTPRoute (`gateway.networking.k8s.io/v1`), as far as it is supported: the fields that are missing here are
//! refused by name (see [`unsupported`]), never ignored.
//!
//! Source: Gateway API v1, standard channel.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::path::FieldPath;

/// Group of the API.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// An HTTPRoute.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// `gateway.networking.k8s.io/v1`
    pub api_version: String,
    /// `HTTPRoute`
    pub kind: String,
    /// Name, namespace and the rest.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: HttpRouteSpec,
    /// Written by controllers; not read.
    #[serde(default, skip_serializing)]
    pub status: Option<serde_json::Value>,
}

/// What is wanted of an HTTPRoute.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// The Services whose requests the rules apply to.
    #[serde(default, deserialize_with = "list")]
    pub parent_refs: Vec<ParentRef>,
    /// The rules; none stands for one rule that matches everything.
    #[serde(default, deserialize_with = "list")]
    pub rules: Vec<Rule>,
}

/// A Service whose requests the rules apply to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// API group; the empty group has Services. Left out, it is [`GROUP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind; left out, it is `Gateway`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace; left out, the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port of the Service; left out, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

/// A rule: what it matches, what it changes, where it sends.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Name of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any of these; none stands for everything.
    #[serde(default, deserialize_with = "list")]
    pub matches: Vec<Match>,
    /// What is changed.
    #[serde(default, deserialize_with = "list")]
    pub filters: Vec<Filter>,
    /// Where requests go.
    #[serde(default, deserialize_with = "list")]
    pub backend_refs: Vec<BackendRef>,
}

/// All parts of a match must hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Path; left out, prefix `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Headers.
    #[serde(default, deserialize_with = "list")]
    pub headers: Vec<NameMatch>,
    /// Query parameters.
    #[serde(default, deserialize_with = "list")]
    pub query_params: Vec<NameMatch>,
    /// Method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PathMatch {
    /// `Exact`, `PathPrefix` (the default) or `RegularExpression`.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// The path; left out, `/`.
    #[serde(default = "slash")]
    pub value: String,
}

fn slash() -> String {
    "/".into()
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PathMatchType {
    /// The whole path.
    Exact,
    /// Whole segments from the start.
    #[default]
    PathPrefix,
    /// A regular expression over the whole path.
    RegularExpression,
}

/// How a header or query parameter is compared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameMatch {
    /// `Exact` (the default) or `RegularExpression`.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ValueMatchType {
    /// The whole value.
    #[default]
    Exact,
    /// A regular expression over the whole value.
    RegularExpression,
}

/// What a rule changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// `RequestHeaderModifier` or `ResponseHeaderModifier`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Changes the request's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes the response's headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
}

/// Headers that are set, added and removed, in this order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Replaces all values of the name.
    #[serde(default, deserialize_with = "list")]
    pub set: Vec<Header>,
    /// Adds a value to the name's.
    #[serde(default, deserialize_with = "list")]
    pub add: Vec<Header>,
    /// Removes all values of the name.
    #[serde(default, deserialize_with = "list")]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Where requests go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// API group; empty (the default) for Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `Service` (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace; left out, the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// Share among the rule's backends; left out, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i64>,
    /// What is changed for this backend only.
    #[serde(default, deserialize_with = "list")]
    pub filters: Vec<Filter>,
}

/// A list that may be written as `null`, as Kubernetes allows.
fn list<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Fields that Gateway API has and this build has not, by their path without list positions, with what to do instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("spec.hostnames", ": rules of a Service apply to all hosts; remove it"),
    ("spec.useDefaultGateways", ""),
    ("spec.parentRefs.sectionName", ": name the Service's port by `port`"),
    ("spec.rules.timeouts", ""),
    ("spec.rules.retry", ""),
    ("spec.rules.sessionPersistence", ""),
];
/// The same for the fields of a filter, wherever it stands.
const UNSUPPORTED_FILTERS: &[&str] =
    &["requestMirror", "requestRedirect", "urlRewrite", "cors", "extensionRef", "externalAuth"];

/// For a field that Gateway API has and this build has not yet: what to do instead (may be empty). `None` for a field that the
/// API has not either.
pub fn unsupported(kind: &str, field: &FieldPath) -> Option<&'static str> {
    if kind != "HTTPRoute" {
        return None;
    }
    let pattern = field.pattern();
    if let Some((_, instead)) = UNSUPPORTED.iter().find(|(known, _)| *known == pattern) {
        return Some(instead);
    }
    let rest =
        pattern.strip_prefix("spec.rules.backendRefs.filters.").or(pattern.strip_prefix("spec.rules.filters."))?;
    UNSUPPORTED_FILTERS.contains(&rest).then_some("")
}

//! Gateway API's kinds to the model's rules; everything wrong with an object is said by field.
//!
//! What is the same in several kinds is read once: parents and backends here, filters in [`filters`], texts in [`values`].

mod filters;
mod grant;
mod grpc;
mod http;
mod stream;
mod values;

pub use grant::reference_grant;
pub use grpc::grpc_route;
pub use http::http_route;
pub use stream::{tcp_route, tls_route};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value as Json;

use crate::{
    gateway::{self as api, generated as spec},
    model::{Backend, HeaderChange, Name, Origin, RouteParent, RouteSet, Rules, Target},
    path::FieldPath,
};

/// Limits of Gateway API v1.
const MAX_PARENTS: usize = 32;
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 64;
/// Matches of all rules of one object.
const MAX_ALL_MATCHES: usize = 128;
const MAX_BACKENDS: usize = 16;
const MAX_WEIGHT: i64 = 1_000_000;

/// A problem of one field.
pub type FieldError = (FieldPath, String);

/// What a read of an object gives.
type Read = Result<RouteSet, Vec<FieldError>>;

/// Gathers what is wrong with an object.
struct Reader<'a> {
    namespace: &'a str,
    errors: Vec<FieldError>,
}

impl<'a> Reader<'a> {
    fn new(metadata: &'a ObjectMeta) -> Self {
        Self { namespace: metadata.namespace.as_deref().unwrap_or_default(), errors: Vec::new() }
    }

    /// The rules, where nothing is wrong.
    fn finish(self, kind: &'static str, metadata: &ObjectMeta, parents: Vec<RouteParent>, rules: Rules) -> Read {
        if !self.errors.is_empty() {
            return Err(self.errors);
        }
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        let name = Name::new(self.namespace, metadata.name.as_deref().unwrap_or_default());
        Ok(RouteSet { origin: Origin { kind, name }, created, parents, rules })
    }

    fn error(&mut self, field: FieldPath, message: impl Into<String>) {
        self.errors.push((field, message.into()));
    }

    fn limit(&mut self, field: &FieldPath, len: usize, max: usize) {
        if len > max {
            self.error(field.clone(), format!("has {len} entries; at most {max} are allowed"));
        }
    }

    /// Rules for a Service are for all names that it is called by.
    fn no_hostnames(&mut self, hostnames: &[String]) {
        if !hostnames.is_empty() {
            let message = "is for Gateways: rules of a Service apply to all hosts, since its address alone selects them; match the \
                           header Host instead";
            self.error(FieldPath::of("spec.hostnames"), message);
        }
    }

    fn no_default_gateways(&mut self, wanted: Option<spec::UseDefaultGateway>) {
        if wanted == Some(spec::UseDefaultGateway::All) {
            let field = FieldPath::of("spec.useDefaultGateways");
            self.error(field, "is not supported: there is no default Gateway of the mesh; leave it out");
        }
    }

    fn parents(&mut self, parents: &[spec::ParentRef]) -> Vec<RouteParent> {
        let at = FieldPath::of("spec.parentRefs");
        self.limit(&at, parents.len(), MAX_PARENTS);
        if parents.is_empty() {
            self.error(at.clone(), "is empty: name the Service whose requests the rules are for");
        }
        let mut list: Vec<RouteParent> = Vec::new();
        for (i, parent) in parents.iter().enumerate() {
            let at = at.index(i);
            let group = parent.group.as_deref().unwrap_or(api::GROUP);
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            if kind != "Service" {
                self.error(at.key("kind"), format!("{kind} is not supported yet: use kind: Service with group: \"\""));
            } else if !is_core(group) {
                self.error(at.key("group"), format!("a Service is of group \"\", not {group}"));
            }
            if parent.section_name.is_some() {
                self.error(at.key("sectionName"), "is not supported: name the Service's port by `port`");
            }
            let port = parent.port.and_then(|port| self.port(port, at.key("port")));
            let namespace = parent.namespace.as_deref().unwrap_or(self.namespace);
            let parent = RouteParent { service: Name::new(namespace, parent.name.as_str()), port };
            if list.contains(&parent) {
                self.error(at.clone(), "is the same as an earlier one");
            } else if list
                .iter()
                .any(|other| other.service == parent.service && (other.port.is_none() || port.is_none()))
            {
                self.error(at.clone(), "names all ports of a Service beside one of them: leave one of the two out");
            }
            list.push(parent);
        }
        list
    }

    fn rule_names<'n>(&mut self, names: impl Iterator<Item = Option<&'n String>>) {
        let mut seen = std::collections::HashSet::new();
        for (i, name) in names.enumerate() {
            if name.is_some_and(|name| !seen.insert(name)) {
                self.error(FieldPath::of("spec.rules").index(i).key("name"), "is the name of an earlier rule");
            }
        }
    }

    fn port(&mut self, port: i64, field: FieldPath) -> Option<u16> {
        let number = u16::try_from(port).ok().filter(|&port| port > 0);
        if number.is_none() {
            self.error(field, format!("{port} is not a port (1 to 65535)"));
        }
        number
    }

    /// What is sent to. Something else than a Service is taken: its share is answered as that of a Service that is not there.
    fn target(&mut self, target: &Reference<'_>, at: &FieldPath) -> Option<Target> {
        let kind = target.kind.unwrap_or("Service");
        let group = target.group.unwrap_or_default();
        let foreign = (kind != "Service" || !is_core(group)).then(|| match group {
            "" => kind.to_owned(),
            group => format!("{kind} of {group}"),
        });
        let service = Name::new(target.namespace.unwrap_or(self.namespace), target.name);
        let port = match target.port {
            Some(port) => self.port(port, at.key("port"))?,
            None if foreign.is_some() => 0,
            None => {
                self.error(at.key("port"), "is missing: a Service needs one");
                return None;
            }
        };
        Some(Target { service, port, foreign })
    }

    fn weight(&mut self, weight: Option<i64>, at: &FieldPath) -> u32 {
        let weight = weight.unwrap_or(1);
        if !(0..=MAX_WEIGHT).contains(&weight) {
            self.error(at.key("weight"), format!("{weight} is not a weight (0 to {MAX_WEIGHT})"));
        }
        u32::try_from(weight).unwrap_or_default()
    }

    fn backend(
        &mut self,
        reference: &Reference<'_>,
        weight: Option<i64>,
        (request_headers, response_headers): (Vec<HeaderChange>, Vec<HeaderChange>),
        at: &FieldPath,
    ) -> Option<Backend> {
        let weight = self.weight(weight, at);
        Some(Backend { target: self.target(reference, at)?, weight, request_headers, response_headers })
    }
}

/// Takes what other controllers look at out of a route: parents that are no Services, and the names of hosts where there are such
/// parents, which are for these (GEP-1294: rules of a Service take none into account). False where nothing is left that is ours. All
/// other kinds are left as they are.
pub fn only_ours(object: &mut Json) -> bool {
    let kind = object.get("kind").and_then(Json::as_str).unwrap_or_default();
    let server_names = kind == api::TLS_ROUTE;
    if ![api::HTTP_ROUTE, api::GRPC_ROUTE, api::TLS_ROUTE, api::TCP_ROUTE].contains(&kind) {
        return true;
    }
    let Some(spec) = object.get_mut("spec").and_then(Json::as_object_mut) else { return false };
    let Some(parents) = spec.get_mut("parentRefs").and_then(Json::as_array_mut) else { return false };
    let all = parents.len();
    parents.retain(|parent| {
        let text = |key: &str| parent.get(key).and_then(Json::as_str);
        text("kind") == Some("Service") && text("group").is_some_and(is_core)
    });
    let ours = parents.len();
    if ours < all && !server_names {
        spec.remove("hostnames");
    }
    ours > 0
}

/// The core group, by either of its names.
fn is_core(group: &str) -> bool {
    group.is_empty() || group == "core"
}

/// A backend's name, as all kinds write it.
struct Reference<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
    port: Option<i64>,
}

/// The generated types of backends differ in what stands beside the name.
macro_rules! references {
    ($($kind:ident),*) => {
        $(impl<'a> From<&'a spec::$kind> for Reference<'a> {
            fn from(of: &'a spec::$kind) -> Self {
                Self {
                    group: of.group.as_deref(),
                    kind: of.kind.as_deref(),
                    namespace: of.namespace.as_deref(),
                    name: &of.name,
                    port: of.port,
                }
            }
        })*
    };
}

references!(BackendRef, WeightedBackendRef, HttpRouteRuleBackendRef, GrpcRouteRuleBackendRef);

//! Istio's PeerAuthentication and AuthorizationPolicy to the model's access rules, as far as they can be enforced on
//! connections.
//!
//! Both give a rule in any case. What can not be accepted is refused whole, with every reason by field, and is closed: a
//! PeerAuthentication is strict, an ALLOW policy allows nobody, a DENY policy denies everybody. A part that can not be
//! enforced is never left out: what is left would be another rule than its author wrote.

mod access;
mod reader;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value as Json;

use self::reader::Reader;
use crate::{
    model::{AuthorizationPolicy, FieldError, MtlsMode, Name, PeerAuthentication, Selection},
    path::FieldPath,
    security as api,
};

/// Most ports with a mode of their own.
const MAX_PORTS: usize = 4096;
/// Most labels of a selector (Istio's limit).
const MAX_LABELS: usize = 4096;

/// Reads a PeerAuthentication.
pub fn peer_authentication(object: &api::PeerAuthentication) -> PeerAuthentication {
    let mut reader = Reader::default();
    let at = FieldPath::of("spec");
    let spec = reader.object(&object.spec, &at, &["selector", "mtls", "portLevelMtls"], &[]);
    let selection = reader.selection(spec, &at);
    let mode = spec.and_then(|spec| spec.get("mtls")).and_then(|mtls| reader.mtls(mtls, &at.key("mtls")));
    let mut ports = BTreeMap::new();
    if let Some(list) = spec.and_then(|spec| spec.get("portLevelMtls")) {
        let at = at.key("portLevelMtls");
        let list = reader.any_object(list, &at);
        if list.is_some() && !matches!(selection, Selection::Labels(_)) {
            reader.error(at.clone(), "needs a selector: the ports of which workloads?");
        }
        reader.limit(&at, list.map_or(0, serde_json::Map::len), MAX_PORTS);
        for (text, mtls) in list.into_iter().flatten() {
            let at = at.key(text.as_str());
            let mode = reader.mtls(mtls, &at);
            if let Some(port) = reader.port(text, &at) {
                ports.insert(port, mode);
            }
        }
    }
    let refused = reader.refused(&object.wrong);
    let (mode, ports) = if refused.is_empty() { (mode, ports) } else { (Some(MtlsMode::Strict), BTreeMap::new()) };
    PeerAuthentication {
        name: name(&object.metadata),
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
        selection,
        mode,
        ports,
        refused,
    }
}

/// Reads an AuthorizationPolicy.
pub fn authorization_policy(object: &api::AuthorizationPolicy) -> AuthorizationPolicy {
    let mut reader = Reader::default();
    let name = name(&object.metadata);
    let (selection, action, rules) = access::read(&mut reader, &name, &object.spec);
    let refused = reader.refused(&object.wrong);
    let rules = if refused.is_empty() { rules } else { Vec::new() };
    AuthorizationPolicy { name, selection, action, rules, refused }
}

fn name(metadata: &ObjectMeta) -> Name {
    Name::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

impl Reader {
    fn selection(&mut self, spec: Option<&serde_json::Map<String, Json>>, at: &FieldPath) -> Selection {
        let before = self.len();
        let Some(selector) = spec.and_then(|spec| spec.get("selector")) else { return Selection::All };
        let at = at.key("selector");
        let selector = self.object(selector, &at, &["matchLabels"], &[("matchExpressions", "use matchLabels")]);
        let at = at.key("matchLabels");
        let labels = selector.and_then(|selector| selector.get("matchLabels"));
        let labels = labels.and_then(|labels| self.any_object(labels, &at));
        self.limit(&at, labels.map_or(0, serde_json::Map::len), MAX_LABELS);
        let mut wanted = BTreeMap::new();
        for (key, value) in labels.into_iter().flatten() {
            let at = at.key(key.as_str());
            match value.as_str() {
                Some(value) if !value.contains('*') && !key.contains('*') && !key.is_empty() => {
                    wanted.insert(key.clone(), value.to_owned());
                }
                Some(_) => self.error(at, "has a star or no key: labels are compared whole"),
                None => self.error(at, "is no text"),
            }
        }
        match (self.len() == before, wanted.is_empty()) {
            (false, _) => Selection::Unknown,
            (true, true) => Selection::All,
            (true, false) => Selection::Labels(wanted),
        }
    }

    fn mtls(&mut self, mtls: &Json, at: &FieldPath) -> Option<MtlsMode> {
        let mode = self.object(mtls, at, &["mode"], &[])?.get("mode")?;
        match mode.as_str() {
            Some("UNSET") => None,
            Some("PERMISSIVE") => Some(MtlsMode::Permissive),
            Some("STRICT") => Some(MtlsMode::Strict),
            Some("DISABLE") => {
                let why = "DISABLE is not supported: callers of the mesh use mutual TLS wherever there is a proxy; \
                           PERMISSIVE accepts plaintext besides, and pods without a proxy have no mutual TLS";
                self.error(at.key("mode"), why);
                None
            }
            _ => {
                self.error(at.key("mode"), "is not one of UNSET, PERMISSIVE and STRICT");
                None
            }
        }
    }
}

impl Reader {
    /// All that is wrong: besides the `spec`, and in it.
    fn refused(self, wrong: &[FieldError]) -> Vec<FieldError> {
        let mut refused = wrong.to_vec();
        for error in self.into_errors() {
            if !refused.contains(&error) {
                refused.push(error);
            }
        }
        refused
    }
}

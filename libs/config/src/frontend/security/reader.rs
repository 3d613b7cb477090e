//! Reads JSON field by field; whatever is not known is a problem.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value as Json};

use crate::{
    model::{FieldError, Name, TextMatch},
    path::FieldPath,
};

/// Longest text of a value, in bytes (Istio's limit for service accounts; identities of real names are shorter).
const MAX_TEXT: usize = 2048;
/// Most problems that are told of one object: enough to mend it, and no log is filled by one.
const MAX_ERRORS: usize = 64;

/// Gathers what is wrong.
#[derive(Debug, Default)]
pub(super) struct Reader {
    errors: Vec<FieldError>,
    more: usize,
}

impl Reader {
    pub(super) fn error(&mut self, field: FieldPath, message: impl Into<String>) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push((field, message.into()));
        } else {
            self.more += 1;
        }
    }

    /// Number of problems so far.
    pub(super) fn len(&self) -> usize {
        self.errors.len() + self.more
    }

    pub(super) fn into_errors(mut self) -> Vec<FieldError> {
        if self.more > 0 {
            self.errors.push((FieldPath::root(), format!("and {} problems more", self.more)));
        }
        self.errors
    }

    pub(super) fn limit(&mut self, field: &FieldPath, len: usize, max: usize) {
        if len > max {
            self.error(field.clone(), format!("has {len} entries; at most {max} are allowed"));
        }
    }

    /// An object with these fields and no other. `unsupported` are fields that the API has, with what to do instead. A `spec` that
    /// is not there is an object without fields; nothing else may be `null`.
    pub(super) fn object<'a>(
        &mut self,
        value: &'a Json,
        at: &FieldPath,
        known: &[&str],
        unsupported: &[(&str, &str)],
    ) -> Option<&'a Map<String, Json>> {
        if value.is_null() && at.steps().len() == 1 {
            return None;
        }
        let object = self.any_object(value, at)?;
        for (key, value) in object {
            if let Some((_, instead)) = unsupported.iter().find(|(known, _)| known == key) {
                self.error(at.key(key.as_str()), format!("is not supported: {instead}"));
            } else if !known.contains(&key.as_str()) {
                self.error(
                    at.key(key.as_str()),
                    "is not a field that this kind has; is it misspelt or in the wrong place?",
                );
            } else if value.is_null() {
                self.error(at.key(key.as_str()), "is null: leave it out");
            }
        }
        Some(object)
    }

    pub(super) fn any_object<'a>(&mut self, value: &'a Json, at: &FieldPath) -> Option<&'a Map<String, Json>> {
        let object = value.as_object();
        if object.is_none() && !value.is_null() {
            self.error(at.clone(), "is no map of fields");
        }
        object
    }

    /// A list that has entries: an empty one could be read as "nobody" and as "everybody".
    pub(super) fn list<'a>(&mut self, value: &'a Json, at: &FieldPath, max: usize) -> &'a [Json] {
        match value.as_array() {
            Some(list) if list.is_empty() => {
                self.error(at.clone(), "is empty: leave it out where everything is meant");
                &[]
            }
            Some(list) => {
                self.limit(at, list.len(), max);
                list
            }
            None if value.is_null() => &[], // said by the object that has it
            None => {
                self.error(at.clone(), "is no list");
                &[]
            }
        }
    }

    pub(super) fn text<'a>(&mut self, value: &'a Json, at: &FieldPath) -> Option<&'a str> {
        match value.as_str() {
            Some("") => self.error(at.clone(), "is empty"),
            Some(text) if text.len() > MAX_TEXT => self.error(at.clone(), format!("is longer than {MAX_TEXT} bytes")),
            Some(text) => return Some(text),
            None => self.error(at.clone(), "is no text"),
        }
        None
    }

    pub(super) fn port(&mut self, text: &str, at: &FieldPath) -> Option<u16> {
        // "+80" and "080" are other texts, which no port is written as.
        let port = text.parse::<u16>().ok().filter(|port| *port > 0 && port.to_string() == text);
        if port.is_none() {
            self.error(at.clone(), "is not a port (1 to 65535)");
        }
        port
    }

    /// An address or a range of them.
    pub(super) fn addresses(&mut self, text: &str, at: &FieldPath) -> Option<IpNet> {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let net = net.filter(|net| match net {
            // Such addresses never show up: connections of either family have addresses of that family.
            IpNet::V6(net) => net.addr().to_ipv4_mapped().is_none(),
            IpNet::V4(_) => true,
        });
        if net.is_none() {
            self.error(at.clone(), "is neither an IP address nor a range such as 10.0.0.0/8 or fd00::/8");
        }
        net.map(|net| net.trunc())
    }

    /// An identity, or the beginning or end of one.
    pub(super) fn principal(&mut self, text: &str, at: &FieldPath) -> Option<TextMatch> {
        let scheme = "spiffe://";
        if text.strip_prefix('*').unwrap_or(text).starts_with(scheme) {
            self.error(at.clone(), format!("is written without {scheme}, such as cluster.local/ns/shop/sa/cart"));
            return None;
        }
        let matcher = TextMatch::read(text);
        if let TextMatch::Exact(whole) = &matcher
            && format!("{scheme}{whole}").parse::<weir_mesh::Identity>().is_err()
        {
            self.error(
                at.clone(),
                "is no identity: it looks like cluster.local/ns/NAMESPACE/sa/ACCOUNT, or has a * at one end",
            );
            return None;
        }
        self.one_star(&matcher, at).then_some(matcher)
    }

    /// A namespace's name, or its beginning or end.
    pub(super) fn namespace(&mut self, text: &str, at: &FieldPath) -> Option<TextMatch> {
        let matcher = TextMatch::read(text);
        let part = match &matcher {
            TextMatch::Exact(part) | TextMatch::Prefix(part) | TextMatch::Suffix(part) => part.as_str(),
            TextMatch::Present => return Some(matcher),
        };
        if !part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            self.error(at.clone(), "is no namespace's name, and no beginning (shop-*) or end (*-test) of one");
            return None;
        }
        Some(matcher)
    }

    /// `ACCOUNT` of the policy's namespace, or `NAMESPACE/ACCOUNT`.
    pub(super) fn service_account(&mut self, text: &str, own: &Name, at: &FieldPath) -> Option<Name> {
        let (namespace, account) = text.split_once('/').unwrap_or((&own.namespace, text));
        let identity = format!("spiffe://any/ns/{namespace}/sa/{account}").parse::<weir_mesh::Identity>();
        if identity.is_err() {
            self.error(at.clone(), "is no service account: it is written ACCOUNT or NAMESPACE/ACCOUNT, without a *");
            return None;
        }
        Some(Name::new(namespace, account))
    }

    fn one_star(&mut self, matcher: &TextMatch, at: &FieldPath) -> bool {
        let rest = match matcher {
            TextMatch::Exact(rest) | TextMatch::Prefix(rest) | TextMatch::Suffix(rest) => rest.as_str(),
            TextMatch::Present => "",
        };
        let one = !rest.contains('*');
        if !one {
            self.error(
                at.clone(),
                "has a * elsewhere than at one end: it would stand for itself, which no identity has",
            );
        }
        one
    }
}

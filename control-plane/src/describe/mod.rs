//! What is in force, in words: for `weir describe`. Pure functions over the [`World`] that is also translated for proxies, by the same
//! functions that order rules and merge policies there.

mod pod;
mod route;
mod rules;
mod service;

pub use pod::pod;
pub use route::route;
pub use service::service;

use weir_config::{
    ObjectRef, Problem,
    describe::{Setting, WithoutEffect},
    model::{AUTHORIZATION_POLICY_KIND, Origin, PEER_AUTHENTICATION_KIND, Protocol, RouteSet, Said, Service},
};

use crate::world::{Aside, World};

/// An object that is refused whole, or closed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Field and what is wrong with it.
    pub reason: String,
}

impl Refused {
    /// The object of a problem. Access rules are none of these: where they are refused they are closed.
    pub(crate) fn of(problem: &Problem) -> Option<Self> {
        let object = problem.object.as_ref()?;
        if [PEER_AUTHENTICATION_KIND, AUTHORIZATION_POLICY_KIND].contains(&object.kind.as_str()) {
            return None;
        }
        let Problem { field, message, .. } = problem;
        let reason = if field.is_root() { message.clone() } else { format!("{field}: {message}") };
        let ObjectRef { kind, namespace, name } = object.clone();
        Some(Self { kind, namespace, name, reason })
    }

    fn without_effect(&self) -> WithoutEffect {
        let Self { kind, namespace, name, reason } = self;
        WithoutEffect { object: format!("{kind}/{namespace}/{name}"), reason: format!("refused: {reason}") }
    }
}

fn protocol(protocol: Protocol) -> String {
    let word = match protocol {
        Protocol::Http => "http",
        Protocol::Opaque => "opaque",
        Protocol::Undeclared => "detect",
    };
    word.to_owned()
}

/// What policies come to that are given in their order: a field is the first one's that says it.
fn settings<'a>(policies: impl IntoIterator<Item = (&'a Origin, Vec<Said>)>) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for (origin, said) in policies {
        for (field, value) in said {
            if !settings.iter().any(|known| known.field == field) {
                settings.push(Setting { field: field.to_owned(), value, object: origin.to_string() });
            }
        }
    }
    settings
}

fn aside(set: &RouteSet, why: Aside<'_>) -> WithoutEffect {
    let reason = match why {
        Aside::Unsuited if set.rules.level().is_of_requests() => {
            "the port does not speak HTTP by its name or appProtocol".to_owned()
        }
        Aside::Unsuited => {
            "the port speaks HTTP by its name or appProtocol: use an HTTPRoute or a GRPCRoute".to_owned()
        }
        Aside::Replaced(by) => {
            let namespace = &by.origin.name.namespace;
            format!("callers of namespace {namespace} follow {}, which takes its place for them", by.origin)
        }
        Aside::Behind(first) => format!("{} goes before: of several kinds on one port the first counts", first.origin),
    };
    WithoutEffect { object: set.origin.to_string(), reason }
}

/// Endpoints of a port of a service.
fn endpoints(world: &World, service: &Service, port: u16) -> usize {
    service.port(port).map_or(0, |port| world.targets(service, port).len())
}

//! What becomes of rules and policies, as Gateway API's conditions have it. The status of these objects says it, and `weir describe`.

use weir_config::{
    FieldPath,
    model::{Name, Origin, RouteSet, ServicePort, Target},
};

use crate::world::World;

/// What a condition says.
pub(crate) struct Verdict {
    /// It holds.
    pub(crate) holds: bool,
    /// Gateway API's word for why.
    pub(crate) reason: &'static str,
    /// The same for people.
    pub(crate) message: String,
}

impl Verdict {
    fn yes(reason: &'static str, message: &str) -> Self {
        Self { holds: true, reason, message: message.into() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }

    /// What is wrong with an object that can not be accepted at all.
    fn refused(reason: &'static str, problems: &[(FieldPath, String)]) -> Self {
        let lines: Vec<String> = problems.iter().map(|(field, message)| format!("{field}: {message}")).collect();
        Self::no(reason, lines.join("; "))
    }
}

/// Whether rules are accepted by a Service, or by one port of it. `refused` are the problems of an object that can not be accepted at all.
pub(crate) fn accepted(
    refused: &[(FieldPath, String)],
    set: Option<&RouteSet>,
    world: &World,
    name: &Name,
    port: Option<i64>,
) -> Verdict {
    if !refused.is_empty() {
        return Verdict::refused("UnsupportedValue", refused);
    }
    let Some(service) = world.service(name) else {
        return Verdict::no("NoMatchingParent", format!("there is no Service {name}"));
    };
    let number = port.and_then(|port| u16::try_from(port).ok());
    let ports: Vec<&ServicePort> =
        service.ports.iter().filter(|known| port.is_none() || Some(known.number) == number).collect();
    let asked = port.map_or_else(|| "TCP port".into(), |port| format!("TCP port {port}"));
    if ports.is_empty() {
        return Verdict::no("NoMatchingParent", format!("Service {name} has no {asked}"));
    }
    let Some(set) = set else { return Verdict::yes("Accepted", "the rules are in force") };
    let level = set.rules.level();
    let suiting = |port: &&&ServicePort| level.suits(world.service_protocol(service, port));
    if ports.iter().filter(suiting).count() == 0 {
        let speaks = if level.is_of_requests() { "speaks HTTP" } else { "speaks something else than HTTP" };
        let message =
            format!("no {asked} of Service {name} {speaks} by its name or appProtocol: the rules have no effect on it");
        return Verdict::no("UnsupportedProtocol", message);
    }
    let caller = set.audience(name).map(|namespace| &**namespace);
    let mut preferred = None;
    for port in ports.iter().filter(suiting) {
        match world.routes_of(service, port, caller).first().copied() {
            Some(first) if first.rules.level() != level => preferred = Some((first, port.number)),
            _ => return Verdict::yes("Accepted", "the rules are in force"),
        }
    }
    match preferred {
        Some((other, port)) => Verdict::no(
            "Conflicted",
            format!(
                "port {port} of Service {name} has rules of {}, which goes before {}",
                other.origin, set.origin.kind
            ),
        ),
        None => Verdict::yes("Accepted", "the rules are in force"),
    }
}

/// Whether everything is there that rules name.
pub(crate) fn resolved(set: Option<&RouteSet>, world: &World) -> Verdict {
    let Some(set) = set else {
        return Verdict::yes("ResolvedRefs", "the rules are not accepted, so nothing that they name is looked for");
    };
    let missing = set.rules.targets().find_map(|(_, field, target)| missing(world, set, field, target));
    missing.unwrap_or_else(|| Verdict::yes("ResolvedRefs", "everything that the rules name is there"))
}

/// Why nothing can be sent to what a field of rules names, and what is done instead.
pub(crate) fn missing(world: &World, set: &RouteSet, field: &str, target: &Target) -> Option<Verdict> {
    let effect = match (field, set.rules.level().is_of_requests()) {
        ("filters", _) => "nobody gets the copy",
        (_, true) => "its share is answered with 500",
        (_, false) => "its share is refused",
    };
    let Target { service, port, foreign } = target;
    if let Some(foreign) = foreign {
        return Some(Verdict::no("InvalidKind", format!("{foreign} is no Service: {effect}")));
    }
    if !world.is_permitted(set, target) {
        let message = format!("no ReferenceGrant of its namespace allows Service {service}: {effect}");
        return Some(Verdict::no("RefNotPermitted", message));
    }
    let message = || format!("there is no Service {service} with TCP port {port}: {effect}");
    world.target(set, target).is_none().then(|| Verdict::no("BackendNotFound", message()))
}

/// Whether a policy is in force, with `refused` as for [`accepted`]; `None` where the world does not have it yet.
pub(crate) fn policy_accepted(refused: &[(FieldPath, String)], name: &Origin, world: &World) -> Option<Verdict> {
    if !refused.is_empty() {
        return Some(Verdict::refused("Invalid", refused));
    }
    let missing = world.targets_missing(name)?;
    Some(if missing.is_empty() {
        Verdict::yes("Accepted", "the policy is in force")
    } else {
        Verdict::no("TargetNotFound", missing.join("; "))
    })
}

//! Access rules: which of them are for a pod, and what they come to together.
//!
//! Precedence is Istio's. Of PeerAuthentications, port over workload over namespace over mesh, and of several of one level the
//! oldest. AuthorizationPolicies add up: those of the pod's namespace and those of the root namespace.

mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use weir_config::model::{
    AUTHORIZATION_POLICY_KIND, AccessAction, AuthorizationPolicy, FieldError, MtlsMode, Name, PEER_AUTHENTICATION_KIND,
    PeerAuthentication, Selection, Workload,
};
use weir_mesh::names::SYSTEM_NAMESPACE;

pub use stored::stored;

/// All access rules.
#[derive(Debug)]
pub struct Policies {
    /// Rules of this namespace are for the whole mesh.
    root: Arc<str>,
    // Ordered by namespace, so that those of one stand together.
    peers: BTreeMap<Name, PeerAuthentication>,
    access: BTreeMap<Name, AuthorizationPolicy>,
}

impl Default for Policies {
    fn default() -> Self {
        Self { root: SYSTEM_NAMESPACE.into(), peers: BTreeMap::new(), access: BTreeMap::new() }
    }
}

/// Whether a pod's ports accept plaintext, and which object says so (none: the default).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mtls {
    /// All ports but those of `ports`.
    pub all: (MtlsMode, Option<Name>),
    /// Ports with a mode of their own.
    pub ports: BTreeMap<u16, (MtlsMode, Option<Name>)>,
}

/// A stored rule that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `KIND NAMESPACE/NAME`
    pub object: String,
    /// What holds instead.
    pub effect: &'static str,
    /// Why.
    pub reasons: Vec<String>,
}

impl Policies {
    /// Rules of this namespace are for the whole mesh.
    pub fn set_root(&mut self, namespace: &str) {
        self.root = namespace.into();
    }

    /// The rules that are for the whole mesh are in this namespace.
    pub fn root(&self) -> &Arc<str> {
        &self.root
    }

    /// Takes a PeerAuthentication, or takes it away; gives the pods that it is, or was, for.
    pub(crate) fn set_peer(&mut self, name: &Name, new: Option<PeerAuthentication>) -> Vec<Concerned> {
        let mesh = name.namespace == self.root;
        let old = match &new {
            Some(new) => self.peers.insert(name.clone(), new.clone()),
            None => self.peers.remove(name),
        };
        old.iter().chain(&new).map(|policy| Concerned::of(name, &policy.selection, mesh)).collect()
    }

    /// The same for an AuthorizationPolicy.
    pub(crate) fn set_access(&mut self, name: &Name, new: Option<AuthorizationPolicy>) -> Vec<Concerned> {
        let mesh = name.namespace == self.root;
        let old = match &new {
            Some(new) => self.access.insert(name.clone(), new.clone()),
            None => self.access.remove(name),
        };
        old.iter().chain(&new).map(|policy| Concerned::of(name, &policy.selection, mesh)).collect()
    }

    /// True where this rule is here already.
    pub fn has_peer(&self, policy: &PeerAuthentication) -> bool {
        self.peers.get(&policy.name) == Some(policy)
    }

    /// True where this rule is here already.
    pub fn has_access(&self, policy: &AuthorizationPolicy) -> bool {
        self.access.get(&policy.name) == Some(policy)
    }

    /// Whether a pod's ports accept plaintext.
    pub fn mtls(&self, pod: &Workload) -> Mtls {
        let own = &pod.name.namespace;
        let here = || of(&self.peers, own).map(|(_, policy)| policy);
        let everywhere = || of(&self.peers, &self.root).map(|(_, policy)| policy);
        let strict = |policy: &PeerAuthentication| (MtlsMode::Strict, Some(policy.name.clone()));
        // What it selects can not be read, so it may be the most precise of all.
        let unreadable = everywhere().chain(here()).find(|policy| policy.selection == Selection::Unknown);
        if let Some(policy) = unreadable {
            return Mtls { all: strict(policy), ports: BTreeMap::new() };
        }
        let is_general = |policy: &&PeerAuthentication| policy.selection == Selection::All;
        let is_for_pod = |policy: &&PeerAuthentication| {
            matches!(policy.selection, Selection::Labels(_)) && policy.selection.selects(&pod.labels)
        };
        let workload = oldest(here().filter(is_for_pod));
        let levels = [oldest(everywhere().filter(is_general)), oldest(here().filter(is_general)), workload];
        let mut all = (MtlsMode::Permissive, None);
        for policy in levels.into_iter().flatten() {
            if let Some(mode) = policy.mode {
                all = (mode, Some(policy.name.clone()));
            }
        }
        let ports = workload.into_iter().flat_map(|policy| {
            policy
                .ports
                .iter()
                .map(|(port, mode)| (*port, mode.map_or_else(|| all.clone(), |mode| (mode, Some(policy.name.clone())))))
        });
        Mtls { ports: ports.collect(), all }
    }

    /// The AuthorizationPolicies that are for a pod, by name.
    pub fn access<'a>(&'a self, pod: &'a Workload) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        let namespaces = BTreeSet::from([&self.root, &pod.name.namespace]);
        namespaces
            .into_iter()
            .flat_map(|namespace| of(&self.access, namespace))
            .map(|(_, policy)| policy)
            .filter(|policy| policy.selection.selects(&pod.labels))
    }

    /// Rules that are not accepted, and what they do.
    pub fn refused(&self) -> Vec<Refused> {
        let reasons = |errors: &[FieldError]| {
            let line =
                |(field, why): &FieldError| if field.is_root() { why.clone() } else { format!("{field}: {why}") };
            errors.iter().map(line).collect()
        };
        let peers = self.peers.values().filter(|policy| !policy.refused.is_empty()).map(|policy| Refused {
            object: format!("{PEER_AUTHENTICATION_KIND} {}", policy.name),
            effect: "its workloads refuse plaintext on all ports",
            reasons: reasons(&policy.refused),
        });
        let access = self.access.values().filter(|policy| !policy.refused.is_empty()).map(|policy| Refused {
            object: format!("{AUTHORIZATION_POLICY_KIND} {}", policy.name),
            effect: match policy.action {
                AccessAction::Allow => "it allows nobody, and its workloads refuse whom no other policy allows",
                AccessAction::Deny => "its workloads refuse everybody",
                AccessAction::Nothing => "it has no effect: policies of its action allow and deny nothing",
            },
            reasons: reasons(&policy.refused),
        });
        peers.chain(access).collect()
    }

    /// Number of rules of each kind, for people.
    pub fn counts(&self) -> [(&'static str, usize); 2] {
        [("peer_authentications", self.peers.len()), ("authorization_policies", self.access.len())]
    }
}

/// Which pods a rule is for.
#[derive(Debug)]
pub(crate) struct Concerned {
    /// `None`: of all namespaces.
    namespace: Option<Arc<str>>,
    selection: Selection,
}

impl Concerned {
    fn of(name: &Name, selection: &Selection, mesh: bool) -> Self {
        Self { namespace: (!mesh).then(|| name.namespace.clone()), selection: selection.clone() }
    }

    /// The pods' names.
    pub(crate) fn pods<'a>(&'a self, all: impl Iterator<Item = &'a Workload> + 'a) -> impl Iterator<Item = Name> + 'a {
        all.filter(|pod| self.namespace.as_ref().is_none_or(|namespace| pod.name.namespace == *namespace))
            .filter(|pod| self.selection.selects(&pod.labels))
            .map(|pod| pod.name.clone())
    }
}

fn of<'a, T>(rules: &'a BTreeMap<Name, T>, namespace: &Arc<str>) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let (from, namespace) = (Name::new(namespace.clone(), ""), namespace.clone());
    rules.range(from..).take_while(move |(name, _)| name.namespace == namespace)
}

/// Those whose time is not known come first; of equally old ones the first by name.
fn oldest<'a>(rules: impl Iterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    rules.min_by(|a, b| a.created.cmp(&b.created))
}

/// What to tell of rules that are not accepted: what is new among them, and objects that are mended or gone.
pub(crate) fn report(before: &[Refused], now: &[Refused]) {
    for refused in now.iter().filter(|refused| !before.contains(refused)) {
        for reason in &refused.reasons {
            tracing::error!(
                object = refused.object,
                effect = refused.effect,
                "an access rule is not accepted: {reason}"
            );
        }
    }
    let still: HashSet<&str> = now.iter().map(|refused| refused.object.as_str()).collect();
    for refused in before.iter().filter(|refused| !still.contains(refused.object.as_str())) {
        tracing::info!(object = refused.object, "the access rule is mended or gone");
    }
}

#[cfg(test)]
mod tests;

//! Everything that is there now, with the indexes to find it, and what a change touches.
//!
//! No I/O and no xDS: changes go in, [`Subject`]s that may look different now come out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use weir_config::{
    cross::is_permitted,
    model::{
        AUTHORIZATION_POLICY_KIND, Addressing, Condition, EndpointSet, Grant, Name, Origin, PEER_AUTHENTICATION_KIND,
        PolicySet, Protocol, RequestPolicy, RequestRules, RequestsOf, RouteSet, Service, ServicePolicy, ServicePort,
        Target as Backend, TargetPort, UpstreamRules, Workload,
    },
};

use crate::{
    policy::{Concerned, Policies},
    source::{Item, ItemKind, ItemRef, Locality, Namespace, Node},
};

/// Something whose resources may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// What a service is.
    Service(Name),
    /// Who serves a service.
    Endpoints(Name),
    /// Which rules a service's requests follow.
    Routes(Name),
    /// Who has an address.
    Address(IpAddr),
    /// A pod's own ports.
    Pod(Name),
}

/// One endpoint of a port.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// The pod behind it, if one is known.
    pub workload: Option<&'a Workload>,
}

/// What the rules of a service's port come to, for callers of one namespace.
#[derive(Debug)]
pub struct Ruling<'a> {
    /// The rules that they follow.
    pub sets: Vec<&'a RouteSet>,
    /// Rules that have no effect.
    pub aside: Vec<(&'a RouteSet, Aside<'a>)>,
}

/// Why rules have no effect on a port.
#[derive(Debug, Clone, Copy)]
pub enum Aside<'a> {
    /// They have no meaning for what it speaks.
    Unsuited,
    /// The callers' namespace has rules of its own, such as these.
    Replaced(&'a RouteSet),
    /// Rules of a kind that goes before, such as these.
    Behind(&'a RouteSet),
}

/// Everything that is there.
#[derive(Debug, Default)]
pub struct World {
    services: HashMap<Name, Service>,
    workloads: HashMap<Name, Workload>,
    endpoints: HashMap<Name, EndpointSet>,
    routes: HashMap<Origin, RouteSet>,
    grants: HashMap<Name, Grant>,
    traffic: HashMap<Origin, PolicySet>,
    namespaces: HashMap<Name, Namespace>,
    nodes: HashMap<Name, Node>,
    policies: Policies,

    // Indexes. Sets are ordered, so that every replica picks the same one.
    services_in: HashMap<Arc<str>, BTreeSet<Name>>,
    workloads_in: HashMap<Arc<str>, BTreeSet<Name>>,
    services_at: HashMap<IpAddr, BTreeSet<Name>>,
    workloads_at: HashMap<IpAddr, BTreeSet<Name>>,
    endpoints_of: HashMap<Name, BTreeSet<Name>>,
    services_with: HashMap<Name, BTreeSet<Name>>,
    routes_for: HashMap<Name, BTreeSet<Origin>>,
    routes_to: HashMap<Name, BTreeSet<Origin>>,
    services_under: HashMap<Name, BTreeSet<Origin>>,
    requests_under: HashMap<RequestsOf, BTreeSet<Origin>>,
    /// Number of pods with our proxy, by namespace.
    meshed_in: HashMap<Arc<str>, usize>,
}

fn link<K: std::hash::Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: K, value: V) {
    index.entry(key).or_default().insert(value);
}

fn unlink<K: std::hash::Hash + Eq, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

fn all<'a, K: std::hash::Hash + Eq, V>(index: &'a HashMap<K, BTreeSet<V>>, key: &K) -> impl Iterator<Item = &'a V> {
    index.get(key).into_iter().flatten()
}

impl World {
    /// Takes a new or changed object, and adds what it touches: nothing, where nothing that the mesh looks at has changed.
    pub fn apply(&mut self, item: Item, touched: &mut HashSet<Subject>) {
        if self.has(&item) {
            return;
        }
        match item {
            Item::Service(service) => self.set_service(service.name.clone(), Some(service), touched),
            Item::Workload(workload) => self.set_workload(workload.name.clone(), Some(*workload), touched),
            Item::Endpoints(set) => self.set_endpoints(set.name.clone(), Some(set), touched),
            Item::Routes(set) => self.set_routes(set.origin.clone(), Some(set), touched),
            Item::Grant(grant) => self.set_grant(grant.origin.name.clone(), Some(grant), touched),
            Item::Traffic(set) => self.set_traffic(set.origin.clone(), Some(set), touched),
            Item::Namespace(namespace) => {
                self.namespaces.insert(namespace.name.clone(), namespace);
            }
            Item::Node(node) => self.set_node(node.name.clone(), Some(node), touched),
            Item::PeerAuthentication(policy) => {
                let concerned = self.policies.set_peer(&policy.name.clone(), Some(policy));
                self.touch_concerned(&concerned, touched);
            }
            Item::AuthorizationPolicy(policy) => {
                let concerned = self.policies.set_access(&policy.name.clone(), Some(policy));
                self.touch_concerned(&concerned, touched);
            }
        }
    }

    /// Takes an object out, and adds what that touches.
    pub fn delete(&mut self, item: ItemRef, touched: &mut HashSet<Subject>) {
        match item.kind {
            ItemKind::Service => self.set_service(item.name, None, touched),
            ItemKind::Workload => self.set_workload(item.name, None, touched),
            ItemKind::Endpoints => self.set_endpoints(item.name, None, touched),
            ItemKind::Routes(kind) => self.set_routes(Origin { kind, name: item.name }, None, touched),
            ItemKind::Grant => self.set_grant(item.name, None, touched),
            ItemKind::Traffic(kind) => self.set_traffic(Origin { kind, name: item.name }, None, touched),
            ItemKind::Namespace => {
                self.namespaces.remove(&item.name);
            }
            ItemKind::Node => self.set_node(item.name, None, touched),
            ItemKind::PeerAuthentication => {
                let concerned = self.policies.set_peer(&item.name, None);
                self.touch_concerned(&concerned, touched);
            }
            ItemKind::AuthorizationPolicy => {
                let concerned = self.policies.set_access(&item.name, None);
                self.touch_concerned(&concerned, touched);
            }
        }
    }

    fn has(&self, item: &Item) -> bool {
        match item {
            Item::Service(service) => self.services.get(&service.name) == Some(service),
            Item::Workload(workload) => self.workloads.get(&workload.name) == Some(&**workload),
            Item::Endpoints(set) => self.endpoints.get(&set.name) == Some(set),
            Item::Routes(set) => self.routes.get(&set.origin) == Some(set),
            Item::Grant(grant) => self.grants.get(&grant.origin.name) == Some(grant),
            Item::Traffic(set) => self.traffic.get(&set.origin) == Some(set),
            Item::Namespace(namespace) => self.namespaces.get(&namespace.name) == Some(namespace),
            Item::Node(node) => self.nodes.get(&node.name) == Some(node),
            Item::PeerAuthentication(policy) => self.policies.has_peer(policy),
            Item::AuthorizationPolicy(policy) => self.policies.has_access(policy),
        }
    }

    fn set_service(&mut self, name: Name, new: Option<Service>, touched: &mut HashSet<Subject>) {
        let old = self.services.remove(&name);
        if let Some(old) = &old {
            unlink(&mut self.services_in, &name.namespace, &name);
            for address in old.addresses() {
                unlink(&mut self.services_at, address, &name);
            }
        }
        for service in old.iter().chain(&new) {
            touched.extend(service.addresses().iter().copied().map(Subject::Address));
            for pod in all(&self.workloads_in, &name.namespace).filter_map(|pod| self.workloads.get(pod)) {
                if service.selects(&pod.labels) {
                    touch_pod(pod, touched);
                }
            }
        }
        touched.extend([
            Subject::Service(name.clone()),
            Subject::Endpoints(name.clone()),
            Subject::Routes(name.clone()),
        ]);
        for set in all(&self.routes_to, &name).filter_map(|set| self.routes.get(set)) {
            self.touch_parents(set, touched);
        }
        if let Some(new) = new {
            link(&mut self.services_in, name.namespace.clone(), name.clone());
            for address in new.addresses() {
                link(&mut self.services_at, *address, name.clone());
            }
            self.services.insert(name, new);
        }
    }

    fn set_workload(&mut self, name: Name, new: Option<Workload>, touched: &mut HashSet<Subject>) {
        let old = self.workloads.remove(&name);
        if old.as_ref().is_some_and(|old| old.meshed)
            && let Some(count) = self.meshed_in.get_mut(&name.namespace)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.meshed_in.remove(&name.namespace);
            }
        }
        if new.as_ref().is_some_and(|new| new.meshed) {
            *self.meshed_in.entry(name.namespace.clone()).or_default() += 1;
        }
        if let Some(old) = &old {
            unlink(&mut self.workloads_in, &name.namespace, &name);
            for address in old.own_addresses() {
                unlink(&mut self.workloads_at, address, &name);
            }
        }
        for pod in old.iter().chain(&new) {
            touch_pod(pod, touched);
        }
        // Ports, their protocols and who selects the pod decide how its services look; all else only who serves them.
        let shape =
            |pod: Option<&Workload>| pod.map(|pod| (pod.opaque_ports.clone(), pod.ports.clone(), pod.labels.clone()));
        let reshaped = shape(old.as_ref()) != shape(new.as_ref());
        let selecting = all(&self.services_in, &name.namespace).filter(|service| {
            let service = self.services.get(*service);
            service.is_some_and(|service| old.iter().chain(&new).any(|pod| service.selects(&pod.labels)))
        });
        for service in selecting.chain(all(&self.services_with, &name)) {
            touched.insert(Subject::Endpoints(service.clone()));
            if reshaped && let Some(service) = self.services.get(service) {
                touched.extend(service.addresses().iter().copied().map(Subject::Address));
                touched.insert(Subject::Routes(service.name.clone()));
            }
        }
        if let Some(new) = new {
            link(&mut self.workloads_in, name.namespace.clone(), name.clone());
            for address in new.own_addresses() {
                link(&mut self.workloads_at, *address, name.clone());
            }
            self.workloads.insert(name, new);
        }
    }

    fn set_endpoints(&mut self, name: Name, new: Option<EndpointSet>, touched: &mut HashSet<Subject>) {
        let old = self.endpoints.remove(&name);
        if let Some(old) = &old {
            unlink(&mut self.endpoints_of, &old.service, &name);
            for pod in old.endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref()) {
                unlink(&mut self.services_with, pod, &old.service);
            }
        }
        let services: BTreeSet<Name> = old.iter().chain(&new).map(|set| set.service.clone()).collect();
        touched.extend(services.iter().cloned().map(Subject::Endpoints));
        if let Some(new) = new {
            link(&mut self.endpoints_of, new.service.clone(), name.clone());
            self.endpoints.insert(name, new);
        }
        // Another list of the same service may name a pod that this one no longer names.
        for service in services {
            for set in all(&self.endpoints_of, &service).filter_map(|set| self.endpoints.get(set)) {
                for pod in set.endpoints.iter().filter_map(|endpoint| endpoint.workload.clone()) {
                    link(&mut self.services_with, pod, service.clone());
                }
            }
        }
    }

    fn set_routes(&mut self, origin: Origin, new: Option<RouteSet>, touched: &mut HashSet<Subject>) {
        if let Some(old) = self.routes.remove(&origin) {
            self.touch_parents(&old, touched);
            for parent in &old.parents {
                unlink(&mut self.routes_for, &parent.service, &origin);
            }
            for (_, _, target) in old.rules.targets() {
                unlink(&mut self.routes_to, &target.service, &origin);
            }
        }
        if let Some(new) = new {
            self.touch_parents(&new, touched);
            for parent in &new.parents {
                link(&mut self.routes_for, parent.service.clone(), origin.clone());
            }
            for (_, _, target) in new.rules.targets() {
                link(&mut self.routes_to, target.service.clone(), origin.clone());
            }
            self.routes.insert(origin, new);
        }
    }

    /// Which rules requests follow is said by routes, and whether there are requests or streams by listeners.
    fn touch_parents(&self, set: &RouteSet, touched: &mut HashSet<Subject>) {
        for parent in &set.parents {
            touched.insert(Subject::Routes(parent.service.clone()));
            if let Some(service) = self.services.get(&parent.service) {
                touched.extend(service.addresses().iter().copied().map(Subject::Address));
            }
        }
    }

    fn set_traffic(&mut self, origin: Origin, new: Option<PolicySet>, touched: &mut HashSet<Subject>) {
        let old = self.traffic.remove(&origin);
        for set in old.iter().chain(&new) {
            self.touch_policy(set, touched);
        }
        if let Some(old) = old {
            for policy in &old.services {
                unlink(&mut self.services_under, &policy.service, &origin);
            }
            for policy in &old.requests {
                unlink(&mut self.requests_under, &policy.of, &origin);
            }
        }
        if let Some(new) = new {
            for policy in &new.services {
                link(&mut self.services_under, policy.service.clone(), origin.clone());
            }
            for policy in &new.requests {
                link(&mut self.requests_under, policy.of.clone(), origin.clone());
            }
            self.traffic.insert(origin, new);
        }
    }

    /// What a policy says of a service changes how it is called, and by which key requests and streams find their endpoint.
    fn touch_policy(&self, set: &PolicySet, touched: &mut HashSet<Subject>) {
        for service in set.services.iter().map(|policy| &policy.service) {
            touched.extend([
                Subject::Service(service.clone()),
                Subject::Endpoints(service.clone()),
                Subject::Routes(service.clone()),
            ]);
            if let Some(service) = self.services.get(service) {
                touched.extend(service.addresses().iter().copied().map(Subject::Address));
            }
            for set in all(&self.routes_to, service).filter_map(|origin| self.routes.get(origin)) {
                self.touch_parents(set, touched);
            }
        }
        for policy in &set.requests {
            match &policy.of {
                RequestsOf::Service(service) => {
                    touched.insert(Subject::Routes(service.clone()));
                }
                RequestsOf::Routes(origin) | RequestsOf::Rule(origin, _) => {
                    if let Some(set) = self.routes.get(origin) {
                        self.touch_parents(set, touched);
                    }
                }
            }
        }
    }

    /// Grants are few, and so are those that they are for.
    fn set_grant(&mut self, name: Name, new: Option<Grant>, touched: &mut HashSet<Subject>) {
        let old = match &new {
            Some(new) => self.grants.insert(name, new.clone()),
            None => self.grants.remove(&name),
        };
        let concerned = |set: &&RouteSet| {
            let permits = |grant: &Grant| set.rules.targets().any(|(_, _, to)| grant.permits(&set.origin, &to.service));
            old.iter().chain(&new).any(permits)
        };
        for set in self.routes.values().filter(concerned) {
            self.touch_parents(set, touched);
        }
    }

    fn set_node(&mut self, name: Name, new: Option<Node>, touched: &mut HashSet<Subject>) {
        let (before, after) =
            (self.nodes.get(&name).map(|node| &node.locality), new.as_ref().map(|node| &node.locality));
        if before.cloned().unwrap_or_default() != after.cloned().unwrap_or_default() {
            for pod in self.workloads.values().filter(|pod| *pod.node == *name.name) {
                touch_pod(pod, touched);
                touched.extend(all(&self.services_with, &pod.name).cloned().map(Subject::Endpoints));
                touched.extend(self.services_of(pod).map(|service| Subject::Endpoints(service.name.clone())));
            }
        }
        match new {
            Some(node) => self.nodes.insert(name, node),
            None => self.nodes.remove(&name),
        };
    }

    /// Where a pod's node stands; nothing where that is not known.
    pub fn locality(&self, pod: &Workload) -> Locality {
        let node = self.nodes.get(&Name::new("", pod.node.as_str()));
        node.map(|node| node.locality.clone()).unwrap_or_default()
    }

    /// Namespaces whose pods get our proxy, and those that have pods with it.
    pub fn mesh_namespaces(&self) -> BTreeSet<Arc<str>> {
        let labelled = self
            .namespaces
            .values()
            .filter(|namespace| namespace.injected)
            .map(|namespace| namespace.name.name.clone());
        labelled.chain(self.meshed_in.keys().cloned()).collect()
    }

    /// True where new pods of a namespace get our proxy.
    pub fn is_injected(&self, namespace: &str) -> bool {
        self.namespaces.get(&Name::new("", namespace)).is_some_and(|namespace| namespace.injected)
    }

    /// The rules of an object.
    pub fn route(&self, origin: &Origin) -> Option<&RouteSet> {
        self.routes.get(origin)
    }

    /// Adds the pods whose access rules have changed.
    fn touch_concerned(&self, concerned: &[Concerned], touched: &mut HashSet<Subject>) {
        for concerned in concerned {
            touched.extend(concerned.pods(self.workloads.values()).map(Subject::Pod));
        }
    }

    /// Access rules.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Access rules, to be set up.
    pub fn policies_mut(&mut self) -> &mut Policies {
        &mut self.policies
    }

    /// A service.
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name)
    }

    /// A pod.
    pub fn workload(&self, name: &Name) -> Option<&Workload> {
        self.workloads.get(name)
    }

    /// The service with this address; where two claim it, the first by name.
    pub fn service_at(&self, address: IpAddr) -> Option<&Service> {
        all(&self.services_at, &address).next().and_then(|name| self.services.get(name))
    }

    /// The pod with this address; where two claim it (one is just going), one that is not terminating, else the first by name.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Workload> {
        let pods = || all(&self.workloads_at, &address).filter_map(|name| self.workloads.get(name));
        pods().find(|pod| !pod.terminating).or_else(|| pods().next())
    }

    /// Services that select a pod, by name.
    pub fn services_of<'a>(&'a self, pod: &'a Workload) -> impl Iterator<Item = &'a Service> {
        all(&self.services_in, &pod.name.namespace)
            .filter_map(|name| self.services.get(name))
            .filter(|service| service.selects(&pod.labels))
    }

    /// The rules that callers of a namespace follow on a port of a service: those of the callers' namespace if it has some, else those
    /// of the service's own; of these the ones of the first level, and none that have no meaning for what the port speaks.
    pub fn routes_of(&self, service: &Service, port: &ServicePort, caller: Option<&str>) -> Vec<&RouteSet> {
        self.ruling(service, port, caller).sets
    }

    /// The same, with what is for this port and these callers and has no effect.
    pub fn ruling(&self, service: &Service, port: &ServicePort, caller: Option<&str>) -> Ruling<'_> {
        let protocol = self.service_protocol(service, port);
        let (mut callers, mut owners, mut aside) = (Vec::new(), Vec::new(), Vec::new());
        for set in self.routes_for(&service.name).filter(|set| set.is_for(&service.name, port.number)) {
            let audience = set.audience(&service.name).map(|namespace| &**namespace);
            if audience.is_some() && audience != caller {
                continue;
            }
            if !set.rules.level().suits(protocol) {
                aside.push((set, Aside::Unsuited));
            } else if audience.is_some() {
                callers.push(set);
            } else {
                owners.push(set);
            }
        }
        let sets = match callers.first().copied() {
            Some(first) => {
                aside.extend(owners.into_iter().map(|set| (set, Aside::Replaced(first))));
                callers
            }
            None => owners,
        };
        let first = sets.iter().copied().min_by_key(|set| set.rules.level());
        let (sets, behind): (Vec<&RouteSet>, Vec<&RouteSet>) =
            sets.into_iter().partition(|set| first.is_some_and(|first| first.rules.level() == set.rules.level()));
        if let Some(first) = first {
            aside.extend(behind.into_iter().map(|set| (set, Aside::Behind(first))));
        }
        Ruling { sets, aside }
    }

    /// All rules that name a service.
    pub fn routes_for(&self, service: &Name) -> impl Iterator<Item = &RouteSet> {
        all(&self.routes_for, service).filter_map(|origin| self.routes.get(origin))
    }

    /// Namespaces whose callers follow rules of their own to a service.
    pub fn audiences(&self, service: &Name) -> BTreeSet<&Arc<str>> {
        self.routes_for(service).filter_map(|set| set.audience(service)).collect()
    }

    /// The service that something is sent to, where it can be.
    pub fn target(&self, set: &RouteSet, target: &Backend) -> Option<&Service> {
        let service = self.services.get(&target.service).filter(|_| target.foreign.is_none())?;
        let called = service.port(target.port).is_some() && !matches!(service.addressing, Addressing::External(_));
        (called && is_permitted(set, target, self.grants.values())).then_some(service)
    }

    /// True where rules may refer to a service.
    pub fn is_permitted(&self, set: &RouteSet, target: &Backend) -> bool {
        is_permitted(set, target, self.grants.values())
    }

    /// Policies of a service for callers of a namespace: of theirs first, then the older ones.
    pub fn policies_of(&self, service: &Name, caller: Option<&str>) -> Vec<&ServicePolicy> {
        let sets = all(&self.services_under, service).filter_map(|origin| self.traffic.get(origin));
        let mut policies: Vec<&ServicePolicy> = sets
            .flat_map(|set| &set.services)
            .filter(|policy| policy.service == *service)
            .filter(|policy| policy.audience().is_none_or(|audience| Some(&**audience) == caller))
            .collect();
        policies.sort_by_key(|policy| {
            (policy.audience().is_none(), policy.created.is_empty(), &policy.created, &policy.origin)
        });
        policies
    }

    /// How callers of a namespace call a port of a service.
    pub fn upstream_rules(&self, service: &Name, port: u16, caller: Option<&str>) -> UpstreamRules {
        let policies = self.policies_of(service, caller);
        policies.iter().fold(UpstreamRules::default(), |rules, policy| rules.or(policy.of(port)))
    }

    /// Policies of requests of these kinds: of the more special kind first, then the older ones.
    pub fn request_policies(&self, of: &[RequestsOf]) -> Vec<&RequestPolicy> {
        let mut all_policies = Vec::new();
        for of in of {
            let sets = all(&self.requests_under, of).filter_map(|origin| self.traffic.get(origin));
            let mut policies: Vec<&RequestPolicy> =
                sets.flat_map(|set| &set.requests).filter(|policy| policy.of == *of).collect();
            policies.sort_by_key(|policy| (policy.created.is_empty(), &policy.created, &policy.origin));
            all_policies.append(&mut policies);
        }
        all_policies
    }

    /// What is done to requests of these kinds.
    pub fn request_rules(&self, of: &[RequestsOf]) -> RequestRules {
        let policies = self.request_policies(of);
        policies.iter().fold(RequestRules::default(), |rules, policy| rules.or(&policy.rules))
    }

    /// Namespaces whose callers have policies of their own for a service.
    pub fn policy_audiences(&self, service: &Name) -> BTreeSet<&Arc<str>> {
        let sets = all(&self.services_under, service).filter_map(|origin| self.traffic.get(origin));
        let policies = sets.flat_map(|set| &set.services).filter(|policy| policy.service == *service);
        policies.filter_map(ServicePolicy::audience).collect()
    }

    /// The same of all services that rules of a service send to, as far as requests and streams carry the key of an endpoint.
    pub fn hash_audiences(&self, service: &Name) -> BTreeSet<&Arc<str>> {
        let targets =
            self.routes_for(service).flat_map(|set| set.rules.targets()).map(|(_, _, target)| &target.service);
        targets.chain([service]).flat_map(|service| self.policy_audiences(service)).collect()
    }

    /// True where the place of a caller decides which endpoints of a service it calls.
    pub fn looks_at_places(&self, service: &Name) -> bool {
        let sets = all(&self.services_under, service).filter_map(|origin| self.traffic.get(origin));
        let policies = sets.flat_map(|set| &set.services).filter(|policy| policy.service == *service);
        policies.flat_map(|policy| policy.ports.values().chain([&policy.all])).any(|rules| rules.places.is_some())
    }

    /// Policies that are for what is not there.
    pub fn policies_of_nothing(&self) -> Vec<(&Origin, String)> {
        let mut found: Vec<_> = self
            .traffic
            .values()
            .flat_map(|set| self.missing(set).into_iter().map(|line| (&set.origin, line)))
            .collect();
        found.sort();
        found
    }

    /// What a policy is for and is not there; `None` where there is no such policy. Of access rules nothing is missing: they are
    /// for whatever comes.
    pub fn targets_missing(&self, policy: &Origin) -> Option<Vec<String>> {
        if let Some(set) = self.traffic.get(policy) {
            return Some(self.missing(set));
        }
        [AUTHORIZATION_POLICY_KIND, PEER_AUTHENTICATION_KIND].contains(&policy.kind).then(Vec::new)
    }

    fn missing(&self, set: &PolicySet) -> Vec<String> {
        let mut missing = Vec::new();
        let services = set.services.iter().map(|policy| &policy.service);
        let requests = set.requests.iter().filter_map(|policy| match &policy.of {
            RequestsOf::Service(service) => Some(service),
            RequestsOf::Routes(_) | RequestsOf::Rule(..) => None,
        });
        for service in services.chain(requests).filter(|service| !self.services.contains_key(service)) {
            missing.push(format!("there is no Service {service}: the policy has no effect on it"));
        }
        for policy in &set.requests {
            match &policy.of {
                RequestsOf::Routes(origin) if !self.routes.contains_key(origin) => {
                    missing.push(format!("there is no {origin}: the policy has no effect on it"));
                }
                RequestsOf::Rule(origin, rule) => {
                    let rules = self.routes.get(origin).map(|set| set.rules.requests()).unwrap_or_default();
                    if !rules.iter().any(|known| known.name.as_ref() == Some(rule)) {
                        missing.push(format!("there is no rule {rule} of {origin}: the policy has no effect on it"));
                    }
                }
                RequestsOf::Routes(_) | RequestsOf::Service(_) => {}
            }
        }
        missing.sort();
        missing.dedup();
        missing
    }

    /// All rules.
    pub fn routes(&self) -> impl Iterator<Item = &RouteSet> {
        self.routes.values()
    }

    /// Where a pod listens for a service's port.
    pub fn target_port(port: &ServicePort, pod: &Workload) -> Option<u16> {
        match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.named_port(name),
        }
    }

    /// What a service's port speaks: as declared, and opaque where one of its pods says so.
    pub fn service_protocol(&self, service: &Service, port: &ServicePort) -> Protocol {
        if port.protocol == Protocol::Opaque {
            return Protocol::Opaque;
        }
        let opaque = self
            .pods_of(service)
            .any(|pod| Self::target_port(port, pod).is_some_and(|target| pod.opaque_ports.contains(&target)));
        if opaque { Protocol::Opaque } else { port.protocol }
    }

    /// What a pod's port speaks, and the service port that says so: opaque where the pod says so, else as its services declare;
    /// where these disagree, it is found out from the first bytes.
    pub fn pod_protocol<'a>(&'a self, pod: &'a Workload, number: u16) -> (Protocol, Option<&'a Service>) {
        let mut declared: Option<(Protocol, &Service)> = None;
        for service in self.services_of(pod) {
            for port in service.ports.iter().filter(|port| Self::target_port(port, pod) == Some(number)) {
                declared = match declared {
                    None => Some((port.protocol, service)),
                    Some((protocol, first)) if protocol == port.protocol => Some((protocol, first)),
                    Some((_, first)) => Some((Protocol::Undeclared, first)),
                };
            }
        }
        let service = declared.map(|(_, service)| service);
        if pod.opaque_ports.contains(&number) {
            return (Protocol::Opaque, service);
        }
        (declared.map_or(Protocol::Undeclared, |(protocol, _)| protocol), service)
    }

    /// Ports that a pod is known to listen at.
    pub fn pod_ports(&self, pod: &Workload) -> BTreeSet<u16> {
        let targets = self.services_of(pod).flat_map(|service| {
            service.ports.iter().filter_map(|port| Self::target_port(port, pod)).collect::<Vec<_>>()
        });
        targets.chain(pod.ports.iter().map(|port| port.number)).chain(pod.opaque_ports.iter().copied()).collect()
    }

    /// Pods behind a service: those that it selects, or those that its endpoints name.
    fn pods_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Workload> {
        let selected = all(&self.workloads_in, &service.name.namespace)
            .filter_map(|name| self.workloads.get(name))
            .filter(|pod| service.selects(&pod.labels));
        let named = all(&self.endpoints_of, &service.name)
            .filter(|_| service.selector.is_empty())
            .filter_map(|set| self.endpoints.get(set))
            .flat_map(|set| &set.endpoints)
            .filter_map(|endpoint| self.workloads.get(endpoint.workload.as_ref()?));
        selected.chain(named)
    }

    /// Who serves a port: the ready ones, or the draining ones where none is ready. A pod counts once, with the address of the
    /// service's first family if it has one. Ordered by address.
    pub fn targets<'a>(&'a self, service: &'a Service, port: &'a ServicePort) -> Vec<Target<'a>> {
        let listed = self.endpoints_of.contains_key(&service.name);
        let candidates = if listed { self.listed(service, port) } else { self.selected(service, port) };
        let best = if candidates.iter().any(|(condition, _)| *condition == Condition::Ready) {
            Condition::Ready
        } else {
            Condition::Draining
        };
        let v6_first = service.addresses().first().is_some_and(IpAddr::is_ipv6);
        let mut chosen: BTreeMap<(Option<&Name>, Option<IpAddr>), Target<'a>> = BTreeMap::new();
        for (_, target) in candidates.into_iter().filter(|(condition, _)| *condition == best) {
            let key = match target.workload {
                Some(pod) => (Some(&pod.name), None),
                None => (None, Some(target.address)),
            };
            let better = |old: &Target<'a>| {
                let rank = |address: IpAddr| (address.is_ipv6() != v6_first, address);
                rank(target.address) < rank(old.address)
            };
            if chosen.get(&key).is_none_or(better) {
                chosen.insert(key, target);
            }
        }
        let mut targets: Vec<Target<'a>> = chosen.into_values().collect();
        targets.sort_by_key(|target| (target.address, target.port));
        targets
    }

    /// From the service's lists of endpoints.
    fn listed<'a>(&'a self, service: &'a Service, port: &'a ServicePort) -> Vec<(Condition, Target<'a>)> {
        let mut found = Vec::new();
        for set in all(&self.endpoints_of, &service.name).filter_map(|set| self.endpoints.get(set)) {
            let Some(number) = set.ports.iter().find(|known| known.name == port.name).map(|known| known.number) else {
                continue;
            };
            for endpoint in &set.endpoints {
                let condition = match endpoint.condition {
                    Condition::Unready if service.publish_not_ready => Condition::Ready,
                    condition => condition,
                };
                for &address in &endpoint.addresses {
                    let named = endpoint.workload.as_ref().and_then(|name| self.workloads.get(name));
                    let workload = named.or_else(|| self.workload_at(address));
                    found.push((condition, Target { address, port: number, workload }));
                }
            }
        }
        found
    }

    /// From the pods that the service selects, where nobody lists endpoints: a plain folder of manifests works alone.
    fn selected<'a>(&'a self, service: &'a Service, port: &'a ServicePort) -> Vec<(Condition, Target<'a>)> {
        let mut found = Vec::new();
        for pod in self.pods_of(service).filter(|pod| !pod.finished) {
            let Some(number) = Self::target_port(port, pod) else { continue };
            let condition = match (pod.ready, pod.terminating) {
                (true, false) => Condition::Ready,
                (true, true) => Condition::Draining,
                (false, false) if service.publish_not_ready => Condition::Ready,
                (false, _) => Condition::Unready,
            };
            found.extend(
                pod.addresses.iter().map(|&address| (condition, Target { address, port: number, workload: Some(pod) })),
            );
        }
        found
    }

    /// Number of objects of each kind, for people.
    pub fn counts(&self) -> [(&'static str, usize); 8] {
        [
            ("services", self.services.len()),
            ("workloads", self.workloads.len()),
            ("endpoint_sets", self.endpoints.len()),
            ("route_sets", self.routes.len()),
            ("grants", self.grants.len()),
            ("traffic_policies", self.traffic.len()),
            ("namespaces", self.namespaces.len()),
            ("nodes", self.nodes.len()),
        ]
    }
}

fn touch_pod(pod: &Workload, touched: &mut HashSet<Subject>) {
    touched.insert(Subject::Pod(pod.name.clone()));
    touched.extend(pod.addresses.iter().copied().map(Subject::Address));
}

//! Route configurations: which rules the requests of a service's port follow, in the order in which they are tried.

mod change;
mod filters;
pub(super) mod hash;
mod retry;

use std::time::Duration;

use weir_config::model::{
    Backend, ComparedPath, HeaderChange, HeaderOp, Level, Matcher, Name, NamedMatcher, RequestRules, RequestsOf,
    Route as Rule, RouteSet, Service, Target, in_precedence,
};
use weir_xds::{
    BAD_BACKEND_CLUSTER,
    envoy::{
        core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
        matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
        protobuf::UInt32Value,
        route::{
            DirectResponseAction, HeaderMatcher, QueryParameterMatcher, Route, RouteAction, RouteConfiguration,
            RouteMatch, VirtualHost, WeightedCluster, header_matcher::HeaderMatchSpecifier,
            query_parameter_matcher::QueryParameterMatchSpecifier, route::Action, route_action::ClusterSpecifier,
            route_match::PathSpecifier, weighted_cluster::ClusterWeight,
        },
    },
};

use prost::Message as _;

use super::{
    Mesh, Of, View,
    encode::{Metadata, append, duration, string, with_metadata},
    key::{address_cluster, service_cluster},
};
use crate::world::World;

/// Name of the route where no rule is written.
const DEFAULT: &str = "default";
/// `RouteConfiguration.virtual_hosts`
const VIRTUAL_HOSTS: u32 = 2;
/// `VirtualHost.routes`
const ROUTES: u32 = 3;
/// `Route.metadata`
const METADATA: u32 = 4;
/// `Route.typed_per_filter_config`
const FILTER_CONFIG: u32 = 13;
/// What Gateway API asks for where a rule has nobody to send to.
const BAD_BACKEND_STATUS: u32 = 500;
/// The same of calls: gRPC's clients read it as UNAVAILABLE.
const BAD_BACKEND_OF_CALLS: u32 = 503;
/// "No time-out": without a word Envoy takes 15 seconds.
const UNBOUNDED: Duration = Duration::ZERO;

pub(super) fn configuration(mesh: &Mesh, world: &World, name: &str, of: &Of, view: &View) -> Option<Vec<u8>> {
    let routes = match of {
        Of::Service(service, port) => {
            let service = world.service(service)?;
            let port = service.port(*port)?;
            let sets = world.routes_of(service, port, view.namespace.as_deref());
            let rules = in_precedence(sets.into_iter().filter(|set| set.rules.level().is_of_requests()));
            if rules.is_empty() {
                vec![default(mesh, world, service, port.number, view)]
            } else {
                rules.iter().map(|rule| route(mesh, world, rule, &service.name, port.number, view)).collect()
            }
        }
        Of::Address(address) => {
            world.workload_at(address.ip())?;
            vec![everything(&address_cluster(*address)).encode_to_vec()]
        }
        Of::Workload(_) | Of::Inbound(_) => return None,
    };
    let mut host = virtual_host(name).encode_to_vec();
    for route in &routes {
        append(&mut host, ROUTES, route);
    }
    let mut bytes = RouteConfiguration { name: name.to_owned(), ..Default::default() }.encode_to_vec();
    append(&mut bytes, VIRTUAL_HOSTS, &host);
    Some(bytes)
}

/// The routes of a pod's own port.
pub(super) fn inbound(cluster: &str) -> RouteConfiguration {
    let mut host = virtual_host(cluster);
    host.routes.push(everything(cluster));
    RouteConfiguration { name: cluster.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

fn virtual_host(name: &str) -> VirtualHost {
    VirtualHost { name: name.to_owned(), domains: vec!["*".into()], ..Default::default() }
}

fn everything(cluster: &str) -> Route {
    Route {
        name: DEFAULT.to_owned(),
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            timeout: Some(duration(UNBOUNDED)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// What is done where no rule is written.
fn default(mesh: &Mesh, world: &World, service: &Service, port: u16, view: &View) -> Vec<u8> {
    let mut route = everything(&service_cluster(port, &mesh.host(service)));
    if let Some(Action::Route(action)) = &mut route.action {
        action.hash_policy = hash::policy(world, [(&service.name, port)], view);
    }
    let mut bytes = route.encode_to_vec();
    let rules = world.request_rules(&[RequestsOf::Service(service.name.clone())]);
    for (name, config) in filters::of_requests(&rules) {
        append(&mut bytes, FILTER_CONFIG, &filters::entry(name, &config));
    }
    bytes
}

/// One match of one rule for the requests to a service; `port` is the one that was called.
fn route(mesh: &Mesh, world: &World, rule: &Rule<'_>, service: &Name, port: u16, view: &View) -> Vec<u8> {
    let object = rule.set.origin.to_string();
    let request = headers(&rule.rule.request_headers);
    let response = headers(&rule.rule.response_headers);
    let action = match &rule.rule.redirect {
        Some(redirect) => Action::Redirect(change::redirect(redirect, &rule.matcher.path, port)),
        None => forward(mesh, world, rule, view),
    };
    let route = Route {
        name: format!("{object}/{}/{}", rule.rule_index, rule.match_index),
        r#match: Some(matching(rule.matcher)),
        action: Some(action),
        request_headers_to_add: request.0,
        request_headers_to_remove: request.1,
        response_headers_to_add: response.0,
        response_headers_to_remove: response.1,
        ..Default::default()
    };
    let metadata = Metadata::default().with("weir", [("object", string(object))]);
    let mut bytes = with_metadata(&route, METADATA, Some(&metadata));
    let mut configs = filters::of_requests(&request_rules(world, rule, service));
    configs.extend(filters::of_rule(rule));
    configs.sort_by_key(|(name, _)| *name);
    for (name, config) in configs {
        append(&mut bytes, FILTER_CONFIG, &filters::entry(name, &config));
    }
    bytes
}

/// Whose policies are for a rule's requests, the more special one first: those of the rule by its name, of its object, of the service
/// that was called.
pub(crate) fn requests_of(rule: &Rule<'_>, service: &Name) -> Vec<RequestsOf> {
    let origin = &rule.set.origin;
    let named = rule.rule.name.iter().map(|name| RequestsOf::Rule(origin.clone(), name.clone()));
    named.chain([RequestsOf::Routes(origin.clone()), RequestsOf::Service(service.clone())]).collect()
}

/// What policies say of a rule's requests.
fn request_rules(world: &World, rule: &Rule<'_>, service: &Name) -> RequestRules {
    world.request_rules(&requests_of(rule, service))
}

fn matching(matcher: &Matcher) -> RouteMatch {
    let path = match matcher.path.compared() {
        ComparedPath::Exact(path) => PathSpecifier::Path(path.into_owned()),
        ComparedPath::Prefix(prefix) if prefix == "/" => PathSpecifier::Prefix(prefix.into_owned()),
        ComparedPath::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.into_owned()),
        ComparedPath::Regex(regex) => PathSpecifier::SafeRegex(self::regex(&regex)),
    };
    let header = |name: &str, pattern| HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..Default::default()
        })),
        ..Default::default()
    };
    let method = matcher.method.iter().map(|method| header(":method", MatchPattern::Exact(method.clone())));
    let headers = matcher.headers.iter().map(|named| header(&named.name, pattern(named)));
    let query = matcher.query.iter().map(|named| QueryParameterMatcher {
        name: named.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern(named)),
            ..Default::default()
        })),
    });
    RouteMatch {
        path_specifier: Some(path),
        headers: method.chain(headers).collect(),
        query_parameters: query.collect(),
        ..Default::default()
    }
}

fn pattern(named: &NamedMatcher) -> MatchPattern {
    if named.regex { MatchPattern::SafeRegex(regex(&named.value)) } else { MatchPattern::Exact(named.value.clone()) }
}

fn regex(regex: &str) -> RegexMatcher {
    RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}

/// The clusters that shares go to; the one of bad backends for what can not be called.
pub(super) fn shares<'a>(
    mesh: &Mesh,
    world: &World,
    set: &RouteSet,
    backends: &'a [Backend],
) -> Vec<(&'a Backend, String)> {
    let shares = backends.iter().filter(|backend| backend.weight > 0);
    shares.map(|backend| (backend, cluster_of(mesh, world, set, &backend.target))).collect()
}

/// What has a share.
pub(super) fn targets(backends: &[Backend]) -> impl Iterator<Item = (&Name, u16)> {
    let shares = backends.iter().filter(|backend| backend.weight > 0);
    shares.map(|backend| (&backend.target.service, backend.target.port))
}

/// The clusters without a share, where sessions stay that began there (GEP-1619).
fn left<'a>(mesh: &Mesh, world: &World, rule: &'a Rule<'_>) -> impl Iterator<Item = (&'a Backend, String)> {
    let left = rule.rule.backends.iter().filter(|backend| backend.weight == 0);
    let left = left.map(|backend| (backend, cluster_of(mesh, world, rule.set, &backend.target)));
    left.filter(|(_, cluster)| cluster != BAD_BACKEND_CLUSTER)
}

fn cluster_of(mesh: &Mesh, world: &World, set: &RouteSet, target: &Target) -> String {
    let service = world.target(set, target);
    service.map_or_else(|| BAD_BACKEND_CLUSTER.to_owned(), |service| service_cluster(target.port, &mesh.host(service)))
}

fn forward(mesh: &Mesh, world: &World, rule: &Rule<'_>, view: &View) -> Action {
    let mut shares = shares(mesh, world, rule.set, &rule.rule.backends);
    if shares.iter().all(|(_, cluster)| cluster == BAD_BACKEND_CLUSTER) {
        let calls = rule.set.rules.level() == Level::Calls;
        let status = if calls { BAD_BACKEND_OF_CALLS } else { BAD_BACKEND_STATUS };
        return Action::DirectResponse(DirectResponseAction { status, ..Default::default() });
    }
    if rule.rule.session.is_some() {
        shares.extend(left(mesh, world, rule));
    }
    let plain = |backend: &Backend| backend.request_headers.is_empty() && backend.response_headers.is_empty();
    let specifier = match shares.as_slice() {
        [(backend, cluster)] if plain(backend) => ClusterSpecifier::Cluster(cluster.clone()),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: shares.into_iter().map(|(backend, cluster)| share(backend, cluster)).collect(),
            ..Default::default()
        }),
    };
    let mirrors = rule.rule.mirrors.iter().filter(|mirror| mirror.millionths > 0).filter_map(|mirror| {
        let cluster = cluster_of(mesh, world, rule.set, &mirror.target);
        (cluster != BAD_BACKEND_CLUSTER).then(|| change::mirror(cluster, mirror.millionths))
    });
    let mut action = RouteAction {
        cluster_specifier: Some(specifier),
        request_mirror_policies: mirrors.collect(),
        timeout: Some(duration(rule.rule.timeout.unwrap_or(UNBOUNDED))),
        retry_policy: retry::policy(rule.rule),
        hash_policy: hash::policy(world, targets(&rule.rule.backends), view),
        ..Default::default()
    };
    change::rewrite(rule, &mut action);
    Action::Route(action)
}

fn share(backend: &Backend, cluster: String) -> ClusterWeight {
    let request = headers(&backend.request_headers);
    let response = headers(&backend.response_headers);
    ClusterWeight {
        name: cluster,
        weight: Some(UInt32Value { value: backend.weight }),
        request_headers_to_add: request.0,
        request_headers_to_remove: request.1,
        response_headers_to_add: response.0,
        response_headers_to_remove: response.1,
        ..Default::default()
    }
}

/// Headers to add (or set), and names to remove.
fn headers(changes: &[HeaderChange]) -> (Vec<HeaderValueOption>, Vec<String>) {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for change in changes {
        let (value, action) = match &change.op {
            HeaderOp::Set(value) => (value, HeaderAppendAction::OverwriteIfExistsOrAdd),
            HeaderOp::Add(value) => (value, HeaderAppendAction::AppendIfExistsOrAdd),
            HeaderOp::Remove => {
                remove.push(change.name.clone());
                continue;
            }
        };
        add.push(HeaderValueOption {
            header: Some(HeaderValue { key: change.name.clone(), value: value.clone(), ..Default::default() }),
            append_action: action.into(),
            ..Default::default()
        });
    }
    (add, remove)
}

//! Route configurations: which rules the requests of a service's port follow, in the order in which they are tried.

use weir_config::model::{
    Addressing, Backend, HeaderChange, HeaderOp, Matcher, NamedMatcher, PathMatcher, ROUTE_KIND, Route as Rule,
    Service, in_precedence,
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
    Mesh, Of,
    encode::{Metadata, append, string, with_metadata},
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
/// What Gateway API asks for where a rule has nobody to send to.
const BAD_BACKEND_STATUS: u32 = 500;

pub(super) fn configuration(mesh: &Mesh, world: &World, name: &str, of: &Of) -> Option<Vec<u8>> {
    let routes = match of {
        Of::Service(service, port) => {
            let service = world.service(service)?;
            let port = service.port(*port)?.number;
            let rules = in_precedence(world.routes_of(&service.name, port));
            if rules.is_empty() {
                vec![everything(&service_cluster(port, &mesh.host(service))).encode_to_vec()]
            } else {
                rules.iter().map(|rule| route(mesh, world, rule)).collect()
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
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn route(mesh: &Mesh, world: &World, rule: &Rule<'_>) -> Vec<u8> {
    let object = format!("{ROUTE_KIND}/{}", rule.set.name);
    let request = headers(&rule.rule.request_headers);
    let response = headers(&rule.rule.response_headers);
    let route = Route {
        name: format!("{object}/{}/{}", rule.rule_index, rule.match_index),
        r#match: Some(matching(rule.matcher)),
        action: Some(action(mesh, world, &rule.rule.backends)),
        request_headers_to_add: request.0,
        request_headers_to_remove: request.1,
        response_headers_to_add: response.0,
        response_headers_to_remove: response.1,
        ..Default::default()
    };
    let metadata = Metadata::default().with("weir", [("object", string(object))]);
    with_metadata(&route, METADATA, Some(&metadata))
}

fn matching(matcher: &Matcher) -> RouteMatch {
    let path = match &matcher.path {
        PathMatcher::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatcher::Prefix(prefix) if prefix == "/" => PathSpecifier::Prefix(prefix.clone()),
        PathMatcher::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
        PathMatcher::Regex(regex) => PathSpecifier::SafeRegex(self::regex(regex)),
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

/// True where a share can be sent there.
pub(crate) fn is_usable(service: Option<&Service>, backend: &Backend) -> bool {
    service.is_some_and(|service| {
        service.port(backend.port).is_some() && !matches!(service.addressing, Addressing::External(_))
    })
}

fn action(mesh: &Mesh, world: &World, backends: &[Backend]) -> Action {
    let shares: Vec<(&Backend, String)> = backends
        .iter()
        .filter(|backend| backend.weight > 0)
        .map(|backend| {
            let service = world.service(&backend.service).filter(|service| is_usable(Some(service), backend));
            let cluster = service.map(|service| service_cluster(backend.port, &mesh.host(service)));
            (backend, cluster.unwrap_or_else(|| BAD_BACKEND_CLUSTER.to_owned()))
        })
        .collect();
    if shares.iter().all(|(_, cluster)| cluster == BAD_BACKEND_CLUSTER) {
        return Action::DirectResponse(DirectResponseAction { status: BAD_BACKEND_STATUS, ..Default::default() });
    }
    let plain = |backend: &Backend| backend.request_headers.is_empty() && backend.response_headers.is_empty();
    let specifier = match shares.as_slice() {
        [(backend, cluster)] if plain(backend) => ClusterSpecifier::Cluster(cluster.clone()),
        _ => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: shares.into_iter().map(|(backend, cluster)| share(backend, cluster)).collect(),
            ..Default::default()
        }),
    };
    Action::Route(RouteAction { cluster_specifier: Some(specifier), ..Default::default() })
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

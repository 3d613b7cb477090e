//! Route configurations.

use std::{collections::BTreeSet, sync::Arc};

use weir_xds::prost::Message;
use weir_xds::{
    BAD_BACKEND_CLUSTER,
    envoy::{
        core::{HeaderValueOption, header_value_option::HeaderAppendAction},
        matcher::{StringMatcher, string_matcher::MatchPattern},
        route::{
            HeaderMatcher, QueryParameterMatcher, Route, RouteConfiguration, RouteMatch,
            header_matcher::HeaderMatchSpecifier, query_parameter_matcher::QueryParameterMatchSpecifier, route::Action,
            route_action::ClusterSpecifier, route_match::PathSpecifier, weighted_cluster::ClusterWeight,
        },
    },
};

use super::{DecodeError, filters, metadata, policy, strict::refuse, text};
use crate::{
    http::{Edits, Name, Value},
    route::{
        ActionSpec, HeaderSpec, MatchSpec, PathSpec, Policy, QuerySpec, RouteSpec, RouteTable, TargetSpec, TextSpec,
    },
    upstream::{Backend, Cluster},
};

/// Routes by their parts, clusters by name.
#[derive(Debug)]
pub(crate) struct RouteSpecs(Vec<RouteSpec<String>>);

impl RouteSpecs {
    /// Names of all clusters that the routes refer to.
    pub(crate) fn clusters(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.targets().filter(|name| *name != BAD_BACKEND_CLUSTER).collect();
        names.into_iter().cloned().collect()
    }

    fn targets(&self) -> impl Iterator<Item = &String> {
        self.0.iter().flat_map(|route| {
            let targets = match &route.action {
                ActionSpec::Forward(targets) => targets.as_slice(),
                ActionSpec::Respond(_) | ActionSpec::Redirect(_) => &[],
            };
            let mirrors = route.policy.iter().flat_map(|policy| &policy.mirrors).map(|mirror| &mirror.cluster);
            targets.iter().map(|target| &target.cluster).chain(mirrors)
        })
    }

    /// The table; state of splits that did not change is taken from the previous one.
    ///
    /// # Errors
    /// [`DecodeError`] names the route that can not be built.
    pub(crate) fn table(
        self,
        cluster: impl Fn(&str) -> Option<Arc<Cluster>>,
        previous: Option<&RouteTable<Backend>>,
    ) -> Result<RouteTable<Backend>, DecodeError> {
        let specs = self.0.into_iter().map(|spec| {
            let name: Arc<str> = spec.name.as_str().into();
            let action = match spec.action {
                ActionSpec::Respond(status) => ActionSpec::Respond(status),
                ActionSpec::Redirect(redirect) => ActionSpec::Redirect(redirect),
                ActionSpec::Forward(targets) => ActionSpec::Forward(
                    targets
                        .into_iter()
                        .map(|target| TargetSpec {
                            cluster: Backend::new(cluster(&target.cluster), name.clone()),
                            name: target.name,
                            weight: target.weight,
                            request_edits: target.request_edits,
                            response_edits: target.response_edits,
                        })
                        .collect(),
                ),
            };
            RouteSpec {
                name: spec.name,
                object: spec.object,
                matches: spec.matches,
                action,
                request_edits: spec.request_edits,
                response_edits: spec.response_edits,
                policy: spec.policy.map(|policy| policy.map(|to| Backend::new(cluster(&to), name.clone()))),
            }
        });
        RouteTable::new(specs.collect(), previous).map_err(|error| DecodeError::new(error.to_string()))
    }
}

/// Decodes a route configuration.
///
/// # Errors
/// [`DecodeError`] names the route and the part that is not understood.
pub(crate) fn routes(body: &[u8]) -> Result<RouteSpecs, DecodeError> {
    let configuration = RouteConfiguration::decode(body)?;
    let [host] = configuration.virtual_hosts.as_slice() else {
        return Err(DecodeError::new(format!(
            "{} virtual hosts, where one is understood: the destination alone selects the Service",
            configuration.virtual_hosts.len()
        )));
    };
    refuse!(
        host,
        matcher,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        rate_limits,
        request_mirror_policies,
    );
    let routes = host
        .routes
        .iter()
        .map(|route| decode_route(route).map_err(|error| DecodeError::new(format!("route {}: {error}", route.name))));
    Ok(RouteSpecs(routes.collect::<Result<_, _>>()?))
}

fn decode_route(route: &Route) -> Result<RouteSpec<String>, DecodeError> {
    let matches = match &route.r#match {
        Some(matches) => decode_match(matches)?,
        None => return Err(DecodeError::new("has no match")),
    };
    refuse!(route, route_specifiers);
    let mut asked = Policy::default();
    let action = match &route.action {
        Some(Action::Redirect(redirect)) => ActionSpec::Redirect(policy::redirect(redirect)?),
        Some(Action::DirectResponse(response)) => ActionSpec::Respond(
            u16::try_from(response.status)
                .ok()
                .filter(|status| (200..=599).contains(status))
                .ok_or_else(|| DecodeError::new(format!("status {} is none", response.status)))?,
        ),
        Some(Action::Route(action)) => {
            asked = policy::policy(action)?;
            match &action.cluster_specifier {
                Some(ClusterSpecifier::Cluster(cluster)) => ActionSpec::Forward(vec![TargetSpec {
                    name: cluster.clone(),
                    weight: 1,
                    cluster: cluster.clone(),
                    request_edits: Edits::new(),
                    response_edits: Edits::new(),
                }]),
                Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                    ActionSpec::Forward(weighted.clusters.iter().map(target).collect::<Result<_, _>>()?)
                }
                _ => return Err(DecodeError::new("the cluster is not named")),
            }
        }
        _ => return Err(DecodeError::new("the action is neither a route, a redirect nor a direct response")),
    };
    filters::add(&mut asked, &route.typed_per_filter_config)?;
    Ok(RouteSpec {
        name: route.name.clone(),
        object: metadata(route.metadata.as_ref(), "weir").and_then(|m| text(m, "object")).map(str::to_owned),
        matches,
        action,
        request_edits: edits(&route.request_headers_to_add, &route.request_headers_to_remove)?,
        response_edits: edits(&route.response_headers_to_add, &route.response_headers_to_remove)?,
        policy: (!asked.asks_nothing()).then_some(asked),
    })
}

fn target(weight: &ClusterWeight) -> Result<TargetSpec<String>, DecodeError> {
    refuse!(weight, cluster_header, metadata_match, typed_per_filter_config, host_rewrite_specifier);
    Ok(TargetSpec {
        name: weight.name.clone(),
        weight: weight.weight.as_ref().map_or(0, |weight| weight.value),
        cluster: weight.name.clone(),
        request_edits: edits(&weight.request_headers_to_add, &weight.request_headers_to_remove)?,
        response_edits: edits(&weight.response_headers_to_add, &weight.response_headers_to_remove)?,
    })
}

fn decode_match(matches: &RouteMatch) -> Result<MatchSpec, DecodeError> {
    let mut spec = MatchSpec {
        path: match &matches.path_specifier {
            Some(PathSpecifier::Path(path)) => PathSpec::Exact(path.clone()),
            Some(PathSpecifier::PathSeparatedPrefix(prefix)) => PathSpec::Prefix(prefix.clone()),
            Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => PathSpec::Any,
            Some(PathSpecifier::SafeRegex(regex)) => PathSpec::Regex(regex.regex.clone()),
            Some(_) => return Err(DecodeError::new("this kind of path match is not understood")),
            None => PathSpec::Any,
        },
        ..MatchSpec::default()
    };
    for header in &matches.headers {
        match header_match(header)? {
            HeaderSpec { name, value: TextSpec::Exact(method) } if name == ":method" => spec.method = Some(method),
            header => spec.headers.push(header),
        }
    }
    for parameter in &matches.query_parameters {
        spec.query.push(query_match(parameter)?);
    }
    let others = matches.cookies.len() + matches.dynamic_metadata.len() + matches.filter_state.len();
    if others > 0 || matches.grpc.is_some() || matches.runtime_fraction.is_some() || matches.tls_context.is_some() {
        return Err(DecodeError::new("a match by something else than path, headers and query is not understood"));
    }
    Ok(spec)
}

fn header_match(header: &HeaderMatcher) -> Result<HeaderSpec, DecodeError> {
    let value = match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(value)) => text_match(value)?,
        Some(HeaderMatchSpecifier::PresentMatch(true)) => TextSpec::Present,
        _ => return Err(DecodeError::new(format!("this kind of match of header {} is not understood", header.name))),
    };
    if header.invert_match {
        return Err(DecodeError::new(format!("the inverted match of header {} is not understood", header.name)));
    }
    Ok(HeaderSpec { name: header.name.clone(), value })
}

fn query_match(parameter: &QueryParameterMatcher) -> Result<QuerySpec, DecodeError> {
    let value = match &parameter.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(value)) => text_match(value)?,
        Some(QueryParameterMatchSpecifier::PresentMatch(true)) => TextSpec::Present,
        _ => {
            return Err(DecodeError::new(format!(
                "this kind of match of parameter {} is not understood",
                parameter.name
            )));
        }
    };
    Ok(QuerySpec { name: parameter.name.clone(), value })
}

fn text_match(value: &StringMatcher) -> Result<TextSpec, DecodeError> {
    match (&value.match_pattern, value.ignore_case) {
        (Some(MatchPattern::Exact(text)), false) => Ok(TextSpec::Exact(text.clone())),
        (Some(MatchPattern::SafeRegex(regex)), false) => Ok(TextSpec::Regex(regex.regex.clone())),
        _ => Err(DecodeError::new("this kind of text match is not understood")),
    }
}

fn edits(add: &[HeaderValueOption], remove: &[String]) -> Result<Edits, DecodeError> {
    let mut edits = Edits::new();
    let bad = |name: &str, error: crate::http::edits::EditError| DecodeError::new(format!("header {name:?} {error}"));
    for option in add {
        let Some(header) = &option.header else { continue };
        let name = Name::new(&header.key).map_err(|error| bad(&header.key, error))?;
        let value = Value::new(header.value.clone()).map_err(|error| bad(&header.key, error))?;
        match HeaderAppendAction::try_from(option.append_action) {
            Ok(HeaderAppendAction::AppendIfExistsOrAdd) => edits.add(name, value),
            Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => edits.set(name, value),
            _ => return Err(DecodeError::new(format!("how header {} is added is not understood", header.key))),
        }
    }
    for name in remove {
        edits.remove(Name::new(name).map_err(|error| bad(name, error))?);
    }
    Ok(edits)
}

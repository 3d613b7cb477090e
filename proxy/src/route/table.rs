//! The routes of one host.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    BadPath, PathRewrite, Policy, Redirect,
    index::PathIndex,
    matching::Matcher,
    rewrite::with_query,
    spec::{ActionSpec, RouteSpec},
    split::Split,
};
use crate::http::{Edits, RequestHead};

/// With fewer routes than this, trying them in order is quicker than looking up.
const INDEX_FROM: usize = 8;
/// Answer of a route that has nowhere to send to (Gateway API: a bad or missing backend).
const NO_BACKEND: u16 = 500;

/// Why a table cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route {route}: {reason}")]
pub struct RouteError {
    /// Name of the route.
    pub route: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Routes in order of precedence, immutable.
#[derive(Debug)]
pub struct RouteTable<C> {
    routes: Box<[Route<C>]>,
    index: Option<PathIndex>,
}

/// One route.
#[derive(Debug)]
pub struct Route<C> {
    /// Shared with the logs of its requests.
    name: Arc<str>,
    /// Empty where there is none.
    object: Arc<str>,
    /// For people.
    matches: Box<str>,
    matcher: Matcher,
    action: Action<C>,
    request_edits: Edits,
    response_edits: Edits,
    policy: Option<Box<Policy<C>>>,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Action<C> {
    /// To one of these clusters.
    Forward(Split<C>),
    /// An answer of our own with this status.
    Respond(u16),
    /// An answer of our own that names another place.
    Redirect(Box<Redirect>),
}

impl<C> Route<C> {
    /// Its name, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object that a user wrote, such as `HTTPRoute/shop/catalog`.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        Some(&*self.object).filter(|object| !object.is_empty())
    }

    /// Its name and its object, for logs.
    #[must_use]
    pub fn label(&self) -> (Arc<str>, Arc<str>) {
        (self.name.clone(), self.object.clone())
    }

    /// Which requests it takes, such as `prefix /v2, header x-canary = yes`.
    #[must_use]
    pub fn matches(&self) -> &str {
        &self.matches
    }

    /// What else it asks; most ask nothing.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy<C>> {
        self.policy.as_deref()
    }

    /// Path and query as they go on, where the route changes them.
    ///
    /// # Errors
    /// [`BadPath`]
    pub fn path_and_query(&self, head: &RequestHead) -> Result<Option<Vec<u8>>, BadPath> {
        let rewrite = self.policy().and_then(|policy| policy.path.as_ref());
        // `*` and the target of CONNECT are no paths.
        let Some(rewrite) = rewrite.filter(|_| head.path().starts_with(b"/")) else { return Ok(None) };
        self.rewritten(rewrite, head).map(|path| Some(with_query(path, head.query())))
    }

    pub(super) fn rewritten(&self, rewrite: &PathRewrite, head: &RequestHead) -> Result<Vec<u8>, BadPath> {
        rewrite.apply(head, self.matcher.path.matched(head.path()))
    }

    /// What is done with a request.
    #[must_use]
    pub fn action(&self) -> &Action<C> {
        &self.action
    }

    /// Changes to the request's headers.
    #[must_use]
    pub fn request_edits(&self) -> &Edits {
        &self.request_edits
    }

    /// Changes to the response's headers.
    #[must_use]
    pub fn response_edits(&self) -> &Edits {
        &self.response_edits
    }
}

impl<C> RouteTable<C> {
    /// Compiles the routes. Where `previous` has a split of the same route name, targets and weights, its place in the sequence is
    /// kept, so that a change of something else does not disturb the proportions; so are the tokens of an equal rate limit.
    ///
    /// # Errors
    /// The first route that cannot be compiled: a malformed or too large regular expression, a path that no request can have.
    pub fn new(specs: Vec<RouteSpec<C>>, previous: Option<&Self>) -> Result<Self, RouteError> {
        let before: FxHashMap<&str, &Route<C>> =
            previous.iter().flat_map(|previous| previous.routes.iter()).map(|route| (&*route.name, route)).collect();
        let new = |spec: RouteSpec<C>| {
            let before = before.get(&*spec.name).copied();
            Route::new(spec, before)
        };
        let routes = specs.into_iter().map(new).collect::<Result<Box<[_]>, _>>()?;
        let index =
            (routes.len() >= INDEX_FROM).then(|| PathIndex::new(routes.iter().map(|route| &route.matcher.path)));
        Ok(Self { routes, index })
    }

    /// The first route that takes the request.
    #[must_use]
    pub fn find(&self, head: &RequestHead) -> Option<&Route<C>> {
        let Some(index) = &self.index else {
            return self.routes.iter().find(|route| route.matcher.matches(head));
        };
        index
            .candidates(head.path())
            .filter_map(|position| self.routes.get(usize::try_from(position).ok()?))
            .find(|route| route.matcher.matches(head))
    }

    /// All routes in order, for the configuration dump.
    #[must_use]
    pub fn routes(&self) -> &[Route<C>] {
        &self.routes
    }
}

impl<C> Route<C> {
    fn new(mut spec: RouteSpec<C>, before: Option<&Self>) -> Result<Self, RouteError> {
        if let (Some(policy), Some(before)) = (&mut spec.policy, before.and_then(Self::policy)) {
            policy.go_on(before);
        }
        let previous = match before.map(Self::action) {
            Some(Action::Forward(split)) => Some(split),
            _ => None,
        };
        let matches = spec.matches.to_string().into();
        let matcher = Matcher::new(spec.matches).map_err(|reason| RouteError { route: spec.name.clone(), reason })?;
        let action = match spec.action {
            ActionSpec::Respond(status) => Action::Respond(status),
            ActionSpec::Redirect(redirect) => Action::Redirect(Box::new(redirect)),
            ActionSpec::Forward(targets) => {
                Split::new(targets, previous).map_or(Action::Respond(NO_BACKEND), Action::Forward)
            }
        };
        Ok(Self {
            name: spec.name.into(),
            object: spec.object.unwrap_or_default().into(),
            matches,
            matcher,
            action,
            request_edits: spec.request_edits,
            response_edits: spec.response_edits,
            policy: spec.policy.map(Box::new),
        })
    }
}

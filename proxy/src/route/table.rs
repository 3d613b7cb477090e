//! The routes of one host.

use rustc_hash::FxHashMap;

use super::{
    index::PathIndex,
    matching::Matcher,
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
    name: String,
    object: Option<String>,
    matcher: Matcher,
    action: Action<C>,
    request_edits: Edits,
    response_edits: Edits,
}

/// What is done with a request.
#[derive(Debug)]
pub enum Action<C> {
    /// To one of these clusters.
    Forward(Split<C>),
    /// An answer of our own with this status.
    Respond(u16),
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
        self.object.as_deref()
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
    /// kept, so that a change of something else does not disturb the proportions.
    ///
    /// # Errors
    /// The first route that cannot be compiled: a malformed or too large regular expression, a path that no request can have.
    pub fn new(specs: Vec<RouteSpec<C>>, previous: Option<&Self>) -> Result<Self, RouteError> {
        let splits: FxHashMap<&str, &Split<C>> = previous.map(Self::splits).unwrap_or_default();
        let new = |spec: RouteSpec<C>| {
            let split = splits.get(&*spec.name).copied();
            Route::new(spec, split)
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

    fn splits(&self) -> FxHashMap<&str, &Split<C>> {
        let mut splits = FxHashMap::default();
        for route in &self.routes {
            if let Action::Forward(split) = &route.action {
                splits.insert(&*route.name, split);
            }
        }
        splits
    }
}

impl<C> Route<C> {
    fn new(spec: RouteSpec<C>, previous: Option<&Split<C>>) -> Result<Self, RouteError> {
        let matcher = Matcher::new(spec.matches).map_err(|reason| RouteError { route: spec.name.clone(), reason })?;
        let action = match spec.action {
            ActionSpec::Respond(status) => Action::Respond(status),
            ActionSpec::Forward(targets) => {
                Split::new(targets, previous).map_or(Action::Respond(NO_BACKEND), Action::Forward)
            }
        };
        Ok(Self {
            name: spec.name,
            object: spec.object,
            matcher,
            action,
            request_edits: spec.request_edits,
            response_edits: spec.response_edits,
        })
    }
}

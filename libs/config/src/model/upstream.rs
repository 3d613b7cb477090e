//! How the endpoints of a service are called, and what is done to requests besides rules.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{Name, Origin};

/// All that one object says of services and requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySet {
    /// The object.
    pub origin: Origin,
    /// Of services, each once.
    pub services: Vec<ServicePolicy>,
    /// Of requests, each kind of them once.
    pub requests: Vec<RequestPolicy>,
}

/// How the endpoints of a service are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePolicy {
    /// The object.
    pub origin: Origin,
    /// When it was made, as RFC 3339 text in UTC; empty where it is not known. Of two the older one counts.
    pub created: String,
    /// The service.
    pub service: Name,
    /// On all ports.
    pub all: UpstreamRules,
    /// On these ports, instead.
    pub ports: BTreeMap<u16, UpstreamRules>,
}

impl ServicePolicy {
    /// For whom it is: everybody, where it stands in the service's own namespace; else only callers of the namespace that is given.
    pub fn audience(&self) -> Option<&Arc<str>> {
        (self.origin.name.namespace != self.service.namespace).then_some(&self.origin.name.namespace)
    }

    /// What it says of a port.
    pub fn of(&self, port: u16) -> &UpstreamRules {
        self.ports.get(&port).unwrap_or(&self.all)
    }
}

/// How endpoints are called; what is not said stays as it is without rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamRules {
    /// Which endpoint.
    pub balance: Option<Balance>,
    /// New endpoints get less at first.
    pub warm_up: Option<WarmUp>,
    /// Which places first.
    pub places: Option<Places>,
    /// Most connections at a time.
    pub max_connections: Option<u32>,
    /// Most requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// Most requests at a time.
    pub max_requests: Option<u32>,
    /// Most retries at a time.
    pub max_retries: Option<u32>,
    /// A connection is used for so many requests.
    pub requests_per_connection: Option<u32>,
    /// Time that a connection may take.
    pub connect_timeout: Option<Duration>,
    /// A connection without requests is closed after this time.
    pub idle_timeout: Option<Duration>,
    /// Endpoints that fail are left out for a while.
    pub outliers: Option<Outliers>,
    /// Endpoints that fail are used all the same if fewer than this share, in percent, are left.
    pub min_healthy_percent: Option<u32>,
    /// Share of retries.
    pub retry_budget: Option<RetryBudget>,
    /// How endpoints are asked whether they are well.
    pub checks: Vec<HealthCheck>,
}

impl UpstreamRules {
    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            balance: self.balance.or_else(|| other.balance.clone()),
            warm_up: self.warm_up.or(other.warm_up),
            places: self.places.or_else(|| other.places.clone()),
            max_connections: self.max_connections.or(other.max_connections),
            max_pending: self.max_pending.or(other.max_pending),
            max_requests: self.max_requests.or(other.max_requests),
            max_retries: self.max_retries.or(other.max_retries),
            requests_per_connection: self.requests_per_connection.or(other.requests_per_connection),
            connect_timeout: self.connect_timeout.or(other.connect_timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            outliers: self.outliers.or_else(|| other.outliers.clone()),
            min_healthy_percent: self.min_healthy_percent.or(other.min_healthy_percent),
            retry_budget: self.retry_budget.or(other.retry_budget),
            checks: if self.checks.is_empty() { other.checks.clone() } else { self.checks },
        }
    }
}

/// Which endpoint gets a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    /// The better of two, by load and latency.
    Least,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same one for the same key.
    Hash {
        /// What is the key.
        key: HashKey,
        /// How it finds its endpoint.
        table: HashTable,
    },
}

/// What requests with the same endpoint have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HashKey {
    /// A header, by its name in lower case.
    Header(String),
    /// A cookie; one is made where there is none, if it has a life time.
    Cookie {
        /// Name.
        name: String,
        /// Path that a new one is for.
        path: String,
        /// Life time of a new one; zero until the browser ends.
        ttl: Option<Duration>,
    },
    /// A parameter of the query.
    Query(String),
    /// The caller's address.
    SourceIp,
}

/// How a key finds its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTable {
    /// A ring, with at least so many points.
    Ring(Option<u64>),
    /// Maglev's table, of this size.
    Maglev(Option<u64>),
}

/// New endpoints get less at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmUp {
    /// For so long.
    pub time: Duration,
    /// Share at the beginning, in percent.
    pub from_percent: u32,
    /// How the share grows, in thousandths: 1,000 is evenly.
    pub aggression_thousandths: u32,
}

/// Which places come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// The caller's zone, then its region, then the region that is named for it, then any.
    Near(BTreeMap<String, String>),
    /// Of callers at a place (`region/zone`, `region/*` or `*`), so many percent to each place.
    Spread(BTreeMap<String, BTreeMap<String, u32>>),
    /// All alike.
    Anywhere,
}

/// Endpoints that fail are left out for a while.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outliers {
    /// After so many answers of 5xx in a row; zero for never.
    pub consecutive_5xx: Option<u32>,
    /// After so many 502, 503 and 504 in a row; zero for never.
    pub consecutive_gateway: Option<u32>,
    /// After so many failed connections in a row; given, these do not count as 5xx.
    pub consecutive_local: Option<u32>,
    /// Failed connections are counted apart from answers.
    pub split_local: bool,
    /// How often it is looked.
    pub interval: Option<Duration>,
    /// For how long at first.
    pub ejection: Option<Duration>,
    /// Most endpoints left out at a time, in percent.
    pub max_percent: Option<u32>,
}

/// Share of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the requests under way, in millionths.
    pub millionths: u32,
    /// So many are always allowed.
    pub min: u32,
}

/// How endpoints are asked whether they are well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// By what.
    pub by: CheckBy,
    /// Time for an answer.
    pub timeout: Duration,
    /// How often.
    pub interval: Duration,
    /// Failures until it is not well.
    pub unhealthy: u32,
    /// Successes until it is well.
    pub healthy: u32,
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckBy {
    /// A request for this path.
    Http {
        /// Path.
        path: String,
        /// Host; none for the service's.
        host: Option<String>,
        /// Statuses of one that is well; none for 200.
        statuses: Vec<u16>,
    },
    /// gRPC's health service, for this service; empty for the server.
    Grpc(String),
    /// A connection.
    Tcp,
}

/// What is done to requests besides rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPolicy {
    /// The object.
    pub origin: Origin,
    /// When it was made, as [`ServicePolicy::created`].
    pub created: String,
    /// Which requests.
    pub of: RequestsOf,
    /// What is done.
    pub rules: RequestRules,
}

/// Which requests are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestsOf {
    /// Those to a service.
    Service(Name),
    /// Those that follow the rules of an object.
    Routes(Origin),
    /// Those that follow one rule of an object.
    Rule(Origin, String),
}

/// What is done to requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestRules {
    /// Some wait first.
    pub delay: Option<Delay>,
    /// Some fail.
    pub abort: Option<Abort>,
    /// How many, for each proxy.
    pub rate: Option<Rate>,
    /// Most bytes of a body.
    pub max_body: Option<u32>,
}

impl RequestRules {
    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            delay: self.delay.or(other.delay),
            abort: self.abort.or(other.abort),
            rate: self.rate.or(other.rate),
            max_body: self.max_body.or(other.max_body),
        }
    }
}

/// Requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// For so long.
    pub time: Duration,
    /// Share of the requests.
    pub millionths: u32,
}

/// Requests fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// How.
    pub with: AbortWith,
    /// Share of the requests.
    pub millionths: u32,
}

/// How a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortWith {
    /// By a status of HTTP.
    Http(u16),
    /// By a status of gRPC.
    Grpc(u8),
}

/// How many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many.
    pub requests: u32,
    /// In this time.
    pub per: Duration,
    /// Most at once.
    pub burst: u32,
}

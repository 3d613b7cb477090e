//! What a rule asks of its requests beyond the cluster that they go to. Most ask nothing, and have no policy.

use std::time::Duration;

use super::{Chance, Cors, Injection, KeyPart, RateLimit, Retry, Session, rewrite::PathRewrite};

/// What a rule asks of its requests.
#[derive(Debug, Clone)]
pub struct Policy<C> {
    /// From a request's head to the end of its answer, all attempts together.
    pub timeout: Option<Duration>,
    /// Without a byte either way.
    pub idle: Option<Duration>,
    /// When a request is sent again.
    pub retry: Option<Retry>,
    /// The path that the endpoint gets.
    pub path: Option<PathRewrite>,
    /// The host that the endpoint gets.
    pub host: Option<Box<[u8]>>,
    /// By what requests meet at one endpoint.
    pub key: Vec<KeyPart>,
    /// Callers stay with their endpoints.
    pub session: Option<Session>,
    /// Who else gets a copy.
    pub mirrors: Vec<Mirror<C>>,
    /// Pages of other origins.
    pub cors: Option<Cors>,
    /// Faults.
    pub injection: Option<Injection>,
    /// A limit on requests.
    pub rate: Option<RateLimit>,
    /// Bytes of the largest body.
    pub max_body: Option<u64>,
}

/// A cluster that gets copies of requests; what it answers is thrown away.
#[derive(Debug, Clone)]
pub struct Mirror<C> {
    /// Where they go.
    pub cluster: C,
    /// Of how many.
    pub share: Chance,
    /// They name the host as it came, and not with `-shadow` behind it.
    pub keeps_host: bool,
}

impl<C> Default for Policy<C> {
    fn default() -> Self {
        Self {
            timeout: None,
            idle: None,
            retry: None,
            path: None,
            host: None,
            key: Vec::new(),
            session: None,
            mirrors: Vec::new(),
            cors: None,
            injection: None,
            rate: None,
            max_body: None,
        }
    }
}

impl<C> Policy<C> {
    /// True where it changes nothing.
    pub fn asks_nothing(&self) -> bool {
        let Self { timeout, idle, retry, path, host, key, session, mirrors, cors, injection, rate, max_body } = self;
        timeout.is_none()
            && idle.is_none()
            && retry.is_none()
            && path.is_none()
            && host.is_none()
            && key.is_empty()
            && session.is_none()
            && mirrors.is_empty()
            && cors.is_none()
            && injection.is_none()
            && rate.is_none()
            && max_body.is_none()
    }

    /// The same with other clusters.
    pub fn map<D>(self, mut cluster: impl FnMut(C) -> D) -> Policy<D> {
        let Self { timeout, idle, retry, path, host, key, session, mirrors, cors, injection, rate, max_body } = self;
        let mirrors = mirrors.into_iter().map(|Mirror { cluster: to, share, keeps_host }| Mirror {
            cluster: cluster(to),
            share,
            keeps_host,
        });
        let mirrors = mirrors.collect();
        Policy { timeout, idle, retry, path, host, key, session, mirrors, cors, injection, rate, max_body }
    }

    /// Goes on with what an earlier version of the same rule has counted.
    pub(super) fn go_on(&mut self, before: &Self) {
        if let (Some(rate), Some(before)) = (&mut self.rate, &before.rate)
            && rate.bucket.is_like(&before.bucket)
        {
            rate.bucket = before.bucket.clone();
        }
    }
}

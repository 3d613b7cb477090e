//! Answers that send the caller elsewhere.

use super::{
    rewrite::{BadPath, PathRewrite, with_query},
    table::Route,
};
use crate::http::{RequestHead, authority};

/// The scheme that requests come with: a proxy of the mesh takes only what is not encrypted by the application.
const SCHEME: &str = "http";

/// Where to: what is not named is that of the request.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// Scheme.
    pub scheme: Option<Box<str>>,
    /// Host, without a port.
    pub host: Option<Box<str>>,
    /// Port.
    pub port: Option<u16>,
    /// Path.
    pub path: RedirectPath,
    /// The query does not go along.
    pub strip_query: bool,
}

/// The path of a redirect.
#[derive(Debug, Clone)]
pub enum RedirectPath {
    /// That of the request.
    Same,
    /// This one; with a query of its own it takes the place of the request's.
    Whole(Box<str>),
    /// That of the request, changed.
    Changed(PathRewrite),
}

impl Redirect {
    /// The value of `Location`.
    ///
    /// # Errors
    /// [`BadPath`]
    pub fn location<C>(&self, route: &Route<C>, head: &RequestHead) -> Result<Vec<u8>, BadPath> {
        let scheme = self.scheme.as_deref().unwrap_or(SCHEME);
        let mut location = [scheme.as_bytes(), b"://"].concat();
        match &self.host {
            Some(host) => location.extend_from_slice(host.as_bytes()),
            None => location.extend_from_slice(self.same_host(head, scheme)),
        }
        // Gateway API: a scheme's own port is not named.
        let usual = if scheme == SCHEME { 80 } else { 443 };
        if let Some(port) = self.port.filter(|port| *port != usual) {
            location.push(b':');
            location.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
        }
        let query = head.query().filter(|_| !self.strip_query);
        let path = match &self.path {
            RedirectPath::Same => with_query(head.path().to_vec(), query),
            RedirectPath::Whole(path) if path.contains('?') => path.as_bytes().to_vec(),
            RedirectPath::Whole(path) => with_query(path.as_bytes().to_vec(), query),
            RedirectPath::Changed(rewrite) => with_query(route.rewritten(rewrite, head)?, query),
        };
        location.extend(path);
        Ok(location)
    }

    /// The request's host. Its port goes where another is named, or where it was the old scheme's own.
    fn same_host<'a>(&self, head: &'a RequestHead, scheme: &str) -> &'a [u8] {
        let whole = head.authority();
        match authority::split(whole) {
            Ok((host, Some(port))) if self.port.is_some() || scheme != SCHEME && port == 80 => host,
            Ok((host, None)) => host,
            _ => whole,
        }
    }
}

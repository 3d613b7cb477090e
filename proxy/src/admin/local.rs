//! The admin port: for whoever can open a shell in the pod, and nobody else.
//!
//! It listens on loopback; a browser on the same machine could still be led to it by a name that resolves to loopback (DNS
//! rebinding), so the Host header must be a loopback name, too.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::{
    HeaderMap, Method, Request, StatusCode,
    header::{HOST, ORIGIN},
};
use serde_json::{Value, json};

use super::{
    Admin,
    body::{self, Answer},
    open,
};
use crate::{telemetry::access_log::Rfc3339, tls::CertFacts};

const HELP: &str = "\
GET  /config_dump                the configuration in use, without secrets
GET  /certs                      public facts about the certificate and the roots in use
GET  /stats, /stats/prometheus   metrics
GET  /ready                      readiness, with the reasons where it is not ready
POST /logging?level=FILTER       changes the log, for example level=info or level=weir_proxy=debug
POST /logging?access=MODE        changes the access log: off, on, or N for one request of N and every failure
GET  /help                       this text
";

pub(super) fn respond<B>(admin: &Admin, request: &Request<B>, peer: IpAddr) -> Answer {
    if !peer.to_canonical().is_loopback() {
        return body::text(StatusCode::FORBIDDEN, "only for callers of this pod\n");
    }
    if !from_loopback(request) {
        return body::text(
            StatusCode::FORBIDDEN,
            "the Host and Origin headers must name localhost, 127.0.0.1 or [::1]\n",
        );
    }
    let path = request.uri().path();
    if path == "/logging" {
        return if request.method() == Method::POST {
            logging(admin, request.uri().query().unwrap_or_default())
        } else {
            body::method_not_allowed("POST")
        };
    }
    if !open::is_read(request) {
        return body::method_not_allowed("GET, HEAD");
    }
    match path {
        "/" | "/help" => body::text(StatusCode::OK, HELP),
        "/config_dump" => body::json(&(admin.config_dump)()),
        "/certs" => body::json(&certificates(admin)),
        "/ready" => open::state(admin),
        "/stats" | "/stats/prometheus" => body::metrics(futures_util::stream::iter(admin.registry.encoder())),
        _ => body::not_found(),
    }
}

fn from_loopback<B>(request: &Request<B>) -> bool {
    let one = |headers: &HeaderMap, name| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok().map(str::to_owned),
            _ => None,
        }
    };
    let named = match request.uri().authority() {
        Some(authority) => is_loopback(authority.as_str()),
        None => true,
    };
    let origin = !request.headers().contains_key(ORIGIN)
        || one(request.headers(), ORIGIN)
            .and_then(|origin| origin.split_once("://").map(|(_, host)| is_loopback(host)))
            .unwrap_or(false);
    named && origin && one(request.headers(), HOST).is_some_and(|host| is_loopback(&host))
}

/// `localhost`, an address of 127.0.0.0/8 or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if name.contains(':') => (name, port),
            _ => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port_ok && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

fn logging(admin: &Admin, query: &str) -> Answer {
    let mut done = String::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(value) = unescape(value) else {
            return body::text(StatusCode::BAD_REQUEST, "the query is not percent-encoded well\n");
        };
        let result = match name {
            "level" => admin.log.set(&value),
            "access" => match &admin.access_log {
                Some(log) => value.parse().map(|mode| log.set_mode(mode)),
                None => Err("this proxy has no access log".into()),
            },
            _ => Err("known are level and access".into()),
        };
        match result {
            Ok(()) => {
                tracing::info!(setting = name, value, "log changed by the admin endpoint");
                done.push_str(name);
                done.push_str(" changed\n");
            }
            Err(reason) => return body::text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
        }
    }
    if done.is_empty() {
        return body::text(StatusCode::BAD_REQUEST, "say level=FILTER or access=MODE\n");
    }
    body::text(StatusCode::OK, done)
}

fn unescape(value: &str) -> Option<String> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

fn certificates(admin: &Admin) -> Value {
    let Some(facts) = admin.tls.facts() else {
        return json!({ "certificate": null, "why": admin.readiness.reasons() });
    };
    let CertFacts { svid, chain_length, roots, generation } = facts.as_ref();
    json!({
        "certificate": {
            "identity": svid.identity,
            "serial": svid.serial,
            "not_before": time(svid.not_before),
            "not_after": time(svid.not_after),
            "chain_length": chain_length,
        },
        "roots": roots.iter().map(|root| json!({
            "subject": root.subject, "serial": root.serial, "not_after": time(root.not_after),
        })).collect::<Vec<_>>(),
        "generation": generation,
    })
}

fn time(seconds: i64) -> String {
    let since: SystemTime = UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Rfc3339(since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_names() {
        for good in ["localhost", "LOCALHOST:15000", "127.0.0.1:15000", "127.1.2.3", "[::1]", "[::1]:15000"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "",
            ":",
            "example.org",
            "localhost.example.org",
            "127.0.0.1.example.org",
            "10.0.0.1",
            "::1",
            "[::1",
            "[::2]",
            "localhost:",
            "localhost:x",
            "localhost:1:2",
            "[127.0.0.1]",
            "user@localhost",
            "0.0.0.0",
            "[::]",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }

    #[test]
    fn percent_encoding() {
        assert_eq!(unescape("a%3Db,c").as_deref(), Some("a=b,c"));
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}

//! Probes and hooks: performs the call that the kubelet would have made, and answers as the application did.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    HeaderMap, Request, StatusCode, Uri,
    body::Incoming,
    header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, TE, USER_AGENT},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use weir_mesh::probe::{Action, AppCall, Which};

use super::{
    App,
    body::{self, Answer},
    client::{self, Driver, Stream},
    server::Abort,
};
use crate::telemetry::Registry;

/// Bytes of an answer that are read, as by the kubelet.
const MAX_BODY: usize = 10 * 1024;
/// Redirects that are followed, as by the kubelet.
const MAX_REDIRECTS: usize = 10;
/// Longest call, whatever was asked for, in seconds.
const MAX_SECONDS: u32 = 3600;
/// What the kubelet calls itself, where it did not say.
const AGENT: &str = "kube-probe/weir";

/// How a call ended.
#[derive(Debug)]
enum Outcome {
    /// The application answered so.
    Status(StatusCode),
    /// It is fine, without a status of its own.
    Fine,
    /// It answered that it is not.
    NotFine(String),
    /// It did not answer.
    Failed(String),
}

/// Performs a call of the table. A probe is answered with the application's status (3xx is success, so it becomes 200), 503
/// where it did not answer, 504 where it took too long. For a hook the kubelet looks at the connection only, so a hook that
/// reached nobody is not answered at all.
pub(super) async fn perform(
    app: &App,
    path: &str,
    call: &AppCall,
    asked: &HeaderMap,
    registry: &Registry,
) -> Result<Answer, Abort> {
    let limit = Duration::from_secs(call.timeout_seconds.clamp(1, MAX_SECONDS).into());
    let agent = asked.get(USER_AGENT).cloned().unwrap_or(HeaderValue::from_static(AGENT));
    let (kind, work) = match &call.action {
        Action::Http { .. } => ("http", tokio::time::timeout(limit, http(app, &call.action, agent)).await),
        Action::Tcp { port, host } => ("tcp", tokio::time::timeout(limit, tcp(app, *port, host.as_deref())).await),
        Action::Grpc { port, service } => ("grpc", tokio::time::timeout(limit, grpc(app, *port, service, agent)).await),
    };
    let (result, answer) = match work {
        Ok(Outcome::Status(status)) if status.is_success() => ("success", body::text(status, "")),
        Ok(Outcome::Status(status)) if status.is_redirection() => ("success", body::text(StatusCode::OK, "")),
        Ok(Outcome::Fine) => ("success", body::text(StatusCode::OK, "")),
        Ok(Outcome::Status(status)) if status.as_u16() >= 400 => ("failure", body::text(status, "")),
        Ok(Outcome::Status(status)) => {
            ("failure", body::text(StatusCode::SERVICE_UNAVAILABLE, format!("the application answered {status}\n")))
        }
        Ok(Outcome::NotFine(why)) => ("failure", body::text(StatusCode::SERVICE_UNAVAILABLE, why + "\n")),
        Ok(Outcome::Failed(why)) => {
            tracing::debug!(path, why, "the application did not answer the kubelet's call");
            registry.proxy.app_probes.inc([kind, "error"]);
            return unanswered(path, StatusCode::SERVICE_UNAVAILABLE, why);
        }
        Err(_) => {
            registry.proxy.app_probes.inc([kind, "timeout"]);
            return unanswered(path, StatusCode::GATEWAY_TIMEOUT, "the application took too long".into());
        }
    };
    registry.proxy.app_probes.inc([kind, result]);
    Ok(answer)
}

fn unanswered(path: &str, status: StatusCode, why: String) -> Result<Answer, Abort> {
    let hook = [Which::PostStart, Which::PreStop]
        .iter()
        .any(|which| path.rsplit_once('/').is_some_and(|(_, last)| last == which.as_str()));
    if hook { Err(Abort) } else { Ok(body::text(status, why + "\n")) }
}

async fn tcp(app: &App, port: u16, host: Option<&str>) -> Outcome {
    let connected = async {
        let target = client::resolve(&app.addresses, host, port).await?;
        client::connect(&app.addresses, target).await
    };
    match connected.await {
        Ok(_) => Outcome::Fine,
        Err(error) => Outcome::Failed(format!("port {port}: {error}")),
    }
}

/// One place to ask.
struct Asked {
    tls: bool,
    /// Host as the URL has it; `None` for the pod itself.
    host: Option<String>,
    port: u16,
    path: String,
}

async fn http(app: &App, action: &Action, agent: HeaderValue) -> Outcome {
    let Action::Http { port, path, tls, host, headers } = action else {
        return Outcome::Failed("not an HTTP call".into());
    };
    let path = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
    let mut asked = Asked { tls: *tls, host: host.clone(), port: *port, path };
    for _ in 0..=MAX_REDIRECTS {
        let (status, location, target) = match get(app, &asked, headers, &agent).await {
            Ok(answer) => answer,
            Err(why) => return Outcome::Failed(why),
        };
        let followed = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
        match location.filter(|_| followed) {
            None => return Outcome::Status(status),
            Some(location) => match redirected(&asked, target, &location) {
                Ok(next) => asked = next,
                // To another host: the kubelet does not go there, and takes it for success.
                Err(Elsewhere::Host) => return Outcome::Status(status),
                Err(Elsewhere::Bad) => return Outcome::Failed("the redirect's Location is not a URL".into()),
            },
        }
    }
    Outcome::Failed(format!("stopped after {MAX_REDIRECTS} redirects"))
}

enum Elsewhere {
    Host,
    Bad,
}

/// Where a redirect leads; only to the same host, as for the kubelet (its port and scheme may differ).
fn redirected(from: &Asked, target: SocketAddr, location: &str) -> Result<Asked, Elsewhere> {
    let location = location.split_once('#').map_or(location, |(before, _)| before);
    if !location.contains("://") && !location.starts_with("//") {
        let base = from.path.split_once('?').map_or(from.path.as_str(), |(path, _)| path);
        let path = match location.as_bytes().first() {
            Some(b'/') => location.to_owned(),
            Some(b'?') => format!("{base}{location}"),
            Some(_) => format!("{}/{location}", base.rsplit_once('/').map_or("", |(folder, _)| folder)),
            None => from.path.clone(),
        };
        return Ok(Asked { tls: from.tls, host: from.host.clone(), port: from.port, path });
    }
    let scheme = if from.tls { "https:" } else { "http:" };
    let absolute = if location.starts_with("//") { format!("{scheme}{location}") } else { location.to_owned() };
    let uri: Uri = absolute.parse().map_err(|_| Elsewhere::Bad)?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(Elsewhere::Bad),
    };
    let host = uri.host().ok_or(Elsewhere::Bad)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let same = match &from.host {
        Some(known) => known.trim_start_matches('[').trim_end_matches(']').eq_ignore_ascii_case(bare),
        None => bare.parse::<IpAddr>().is_ok_and(|ip| ip == target.ip()),
    };
    if !same {
        return Err(Elsewhere::Host);
    }
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Ok(Asked { tls, host: from.host.clone(), port, path })
}

/// One GET; its status, Location, and whom it went to.
async fn get(
    app: &App,
    asked: &Asked,
    headers: &[(String, String)],
    agent: &HeaderValue,
) -> Result<(StatusCode, Option<String>, SocketAddr), String> {
    let place = format!("port {}", asked.port);
    let failed = |error: io::Error| format!("{place}: {error}");
    let target = client::resolve(&app.addresses, asked.host.as_deref(), asked.port).await.map_err(failed)?;
    let request = request(asked, target, headers, agent)?;
    let stream = client::connect(&app.addresses, target).await.map_err(failed)?;
    let stream = if asked.tls {
        client::encrypt(stream, asked.host.as_deref(), target).await.map_err(failed)?
    } else {
        Stream::Plain(stream)
    };
    let (response, _driver) = client::send(stream, request).await.map_err(|error| format!("{place}: {error}"))?;
    let status = response.status();
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    drain(response.into_body()).await.map_err(|error| format!("{place}: {error}"))?;
    Ok((status, location, target))
}

/// Reads what the kubelet would read: an answer that breaks off is a failed one.
async fn drain(mut body: Incoming) -> Result<(), hyper::Error> {
    let mut seen = 0_usize;
    while seen < MAX_BODY {
        match body.frame().await {
            Some(frame) => seen = seen.saturating_add(frame?.data_ref().map_or(0, Bytes::len)),
            None => break,
        }
    }
    Ok(())
}

fn request(
    asked: &Asked,
    target: SocketAddr,
    headers: &[(String, String)],
    agent: &HeaderValue,
) -> Result<Request<Empty<Bytes>>, String> {
    let authority = match &asked.host {
        Some(host) if !host.is_empty() => format!("{host}:{}", asked.port),
        _ => target.to_string(),
    };
    let mut request =
        Request::get(asked.path.as_str()).body(Empty::new()).map_err(|_| "the path is not one of HTTP")?;
    let map = request.headers_mut();
    map.insert(HOST, HeaderValue::try_from(authority).map_err(|_| "the host is not one of HTTP")?);
    map.insert(USER_AGENT, agent.clone());
    map.insert(ACCEPT, HeaderValue::from_static("*/*"));
    for known in [HOST, USER_AGENT, ACCEPT] {
        if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(known.as_str())) {
            map.remove(&known);
        }
    }
    for (name, value) in headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| format!("{name:?} is not a header name"))?;
        let value =
            HeaderValue::try_from(value.as_str()).map_err(|_| format!("the value of {name} is not one of HTTP"))?;
        // Empty means: leave out, for the headers that are set unasked.
        if value.is_empty() && (name == USER_AGENT || name == ACCEPT) {
            continue;
        }
        map.append(name, value);
    }
    map.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// `grpc.health.v1.Health/Check`, in clear text.
async fn grpc(app: &App, port: u16, service: &str, agent: HeaderValue) -> Outcome {
    match check(app, port, service, agent).await {
        Ok(outcome) => outcome,
        Err(why) => Outcome::Failed(format!("port {port}: {why}")),
    }
}

async fn check(app: &App, port: u16, service: &str, agent: HeaderValue) -> Result<Outcome, String> {
    let target = client::resolve(&app.addresses, None, port).await.map_err(|e| e.to_string())?;
    let stream = client::connect(&app.addresses, target).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let _driver = Driver::new(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, agent)
        .body(Full::new(health_request(service)))
        .map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if response.status() != StatusCode::OK {
        return Ok(Outcome::NotFine(format!("the health service answered with HTTP status {}", response.status())));
    }
    let in_head = response.headers().get("grpc-status").cloned();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| e.to_string())?;
    let status = in_head.or_else(|| body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned());
    if let Some(status) = status.filter(|status| status != "0") {
        return Ok(Outcome::NotFine(format!("the health service answered with gRPC status {status:?}")));
    }
    Ok(match health_status(&body.to_bytes()) {
        Some(1) => Outcome::Fine,
        Some(0) => Outcome::NotFine("the health service says UNKNOWN".into()),
        Some(2) => Outcome::NotFine("the health service says NOT_SERVING".into()),
        Some(3) => Outcome::NotFine("the health service says SERVICE_UNKNOWN".into()),
        _ => Outcome::NotFine("the health service's answer is not understood".into()),
    })
}

/// `HealthCheckRequest { service = 1 }` in a gRPC frame.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len().saturating_add(5));
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.unsplit(message);
    frame.freeze()
}

/// The `status` of a `HealthCheckResponse { status = 1 }` in an uncompressed gRPC frame.
fn health_status(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_first_chunk::<5>()?;
    let [0, length @ ..] = *head else { return None };
    let mut rest = message.get(..usize::try_from(u32::from_be_bytes(length)).ok()?)?;
    let mut status = 0;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages() {
        assert_eq!(health_request("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(health_request(&"a".repeat(200)).get(5..8), Some([0x0a, 0xc8, 1].as_slice()));
        assert_eq!(health_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(health_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(health_status(&[0, 0, 0, 0, 6, 0x12, 2, b'x', b'y', 8, 2]), Some(2));
        for bad in
            [&[][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 2, 8], &[0, 0, 0, 0, 1, 0x0b], &[0, 0xff, 0, 0, 0]]
        {
            assert_eq!(health_status(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn redirects_stay_on_the_host() {
        let from = || Asked { tls: false, host: None, port: 8080, path: "/a/b?c".into() };
        let target: SocketAddr = "198.18.0.1:8080".parse().unwrap();
        let to = |location: &str| redirected(&from(), target, location).ok().map(|a| (a.tls, a.port, a.path));
        assert_eq!(to("/x?y"), Some((false, 8080, "/x?y".into())));
        assert_eq!(to("x"), Some((false, 8080, "/a/x".into())));
        assert_eq!(to("?d"), Some((false, 8080, "/a/b?d".into())));
        assert_eq!(to("http://198.18.0.1:81/z#f"), Some((false, 81, "/z".into())));
        assert_eq!(to("https://198.18.0.1/"), Some((true, 443, "/".into())));
        assert_eq!(to("//198.18.0.1"), Some((false, 80, "/".into())));
        for elsewhere in
            ["http://198.18.0.2/", "https://example.org/", "http://198.18.0.1@example.org/", "ftp://198.18.0.1/"]
        {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
    }
}

//! Finding somebody who answers: the route, the endpoint, the connection, and another one where nothing was delivered.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    NOT_DELIVERED,
    body::BodyPump,
    forward::{self, Fault, await_head},
    is_not_delivered,
    record::Record,
};
use crate::{
    config::{Answer, Entry},
    http::{
        Edits, Name, RequestHead, ResponseHead, Value,
        h1::{ForwardRequest, write_request},
    },
    net::{Conn, random},
    route::Action,
    serve::Worker,
    telemetry::ResponseFlags,
    tls::Alpn,
    upstream::{Connected, Endpoint, InFlight, Unreachable, pick},
};

/// Attempts for one request, the first included.
const ATTEMPTS: usize = 4;
/// Pause before an endpoint is tried for the second time.
const PAUSE: Duration = Duration::from_millis(25);
/// How long a request waits for room to make a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Why a request is sent again: the kept connection that it went out on was dead.
const DEAD: &str = "dead_connection";

/// Which kept connections may carry a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// All that seem alive: should one be dead after all, the request is sent again.
    Any,
    /// Those of which the kernel says so at this moment: the request can be sent once only.
    Proven,
    /// None.
    Never,
}

impl Kept {
    fn of(head: &RequestHead) -> Self {
        if is_safe(head) { Self::Any } else { Self::Proven }
    }

    /// The first that will do.
    fn take(self, next: impl Fn() -> Option<Connected>) -> Option<Connected> {
        match self {
            Self::Any => next(),
            Self::Proven => std::iter::from_fn(next).find_map(|mut found| found.conn.is_quiet_now().then_some(found)),
            Self::Never => None,
        }
    }
}

/// What came of a request.
#[allow(clippy::large_enum_variant)] // one a request, moved once; a box would be an allocation on the hot path
pub(super) enum Outcome {
    /// An answer has begun.
    Answered(Answered),
    /// The rules say that the proxy answers.
    Own {
        /// Status.
        status: u16,
        /// Flag.
        flag: ResponseFlags,
        /// Why.
        reason: String,
    },
}

/// An answer that has begun.
pub(super) struct Answered {
    /// The connection that it comes on.
    pub upstream: Conn,
    /// Its head.
    pub head: ResponseHead,
    /// Changes to its headers, by the route and by the backend.
    pub edits: [Edits; 2],
    /// Where the connection goes when the answer is whole.
    pub place: Place,
    /// Counts the request at its endpoint.
    pub _in_flight: Option<InFlight>,
}

/// Where a connection is kept.
pub(super) enum Place {
    /// With an endpoint's.
    Endpoint(Endpoint),
    /// With the application's.
    App(SocketAddr),
}

impl Place {
    /// Keeps the connection.
    pub(super) fn give(&self, worker: &Worker, conn: Conn) {
        let now = Instant::now();
        match self {
            Self::Endpoint(endpoint) => worker.pool.give(endpoint, conn, now),
            Self::App(address) => worker.pool.give_app(*address, conn, now),
        }
    }
}

/// Sends a request where its destination's rules say.
///
/// # Errors
/// The fault of the last attempt.
pub(super) async fn to_destination(
    worker: &Worker,
    caller: &mut Conn,
    entry: &Entry,
    head: &RequestHead,
    body: &mut BodyPump,
    out: &mut BytesMut,
    record: &mut Record,
) -> Result<Outcome, Fault> {
    let own = |status, flag, reason: String| Ok(Outcome::Own { status, flag, reason });
    let edits = own_edits(head, record);
    let answer = entry.answer().as_ref().clone();
    let Answer::Known(outbound) = answer else {
        return own(503, ResponseFlags::NC, format!("{} is no address of a Service or pod any more", entry.address));
    };
    let Some(table) = outbound.routes.as_ref().and_then(|cell| cell.table()) else {
        return own(503, ResponseFlags::NC, format!("there are no rules for {}", entry.address));
    };
    let Some(route) = table.find(head) else {
        return own(404, ResponseFlags::NR, "no rule of this Service matches".into());
    };
    let invalid = || {
        let reason = format!(
            "{} names a backend that is not valid (see the status of {})",
            route.name(),
            route.object().unwrap_or("its object")
        );
        Ok(Outcome::Own { status: 500, flag: ResponseFlags::NONE, reason })
    };
    let split = match route.action() {
        Action::Forward(split) => split,
        Action::Respond(500) => return invalid(),
        Action::Respond(status) => return own(*status, ResponseFlags::NONE, format!("{} answers so", route.name())),
    };
    let target = split.pick();
    let backend = target.cluster();
    record.route = Some((backend.route.clone(), backend.object.clone()));
    let Some(cluster) = &backend.cluster else { return invalid() };
    record.cluster = Some(cluster.clone());
    let info = cluster.info().clone();
    record.service = info.service.clone();
    if let Some(service) = &info.service {
        record.route_series = Some(backend.series(&worker.shared.registry, service).clone());
    }
    let Some(endpoints) = cluster.endpoints().as_ref().cloned() else {
        return own(503, ResponseFlags::UH, format!("the endpoints of {} are not known yet", cluster.name));
    };
    cluster.budget.deposit();

    let edits = [&edits, route.request_edits(), target.request_edits()];
    let mut tried: SmallVec<[SocketAddr; ATTEMPTS]> = SmallVec::new();
    let mut last: Option<Fault> = None;
    let mut why = "connect";
    // Once a kept connection was dead, the others may be as well: the next one is new.
    let mut kept = Kept::of(head);
    for attempt in 0..ATTEMPTS {
        let now = Instant::now();
        let Some(endpoint) = pick(&endpoints, &tried, now).cloned() else {
            return own(503, ResponseFlags::UH, format!("{} has no ready endpoint", cluster.name));
        };
        if attempt > 0 {
            // A new connection in the place of a dead one adds nothing to the load: it is not a retry in the budget's sense, and there
            // is one at most for each request.
            if why != DEAD && !cluster.budget.withdraw() {
                worker.shared.registry.proxy.retries.inc(["budget_exhausted"]);
                break;
            }
            worker.shared.registry.proxy.retries.inc([why]);
            if tried.contains(&endpoint.address) {
                sleep(PAUSE.mul_f64(1.0 + (random() % 100) as f64 / 100.0)).await;
            }
        }
        record.endpoint = Some(endpoint.clone());
        let in_flight = endpoint.state.enter();
        let sent = Instant::now();
        let limit = info.connect_timeout;
        let sending = send(worker, caller, entry.address, &endpoint, kept, limit, head, &edits, body, out);
        let fault = match sending.await {
            Ok((upstream, response)) if endpoint.mesh.is_some() && is_not_delivered(&response) => {
                drop(upstream);
                endpoint.state.unreachable(Instant::now());
                why = "not_delivered";
                let detail = format!("the application behind {} did not accept the request", endpoint.address);
                Fault { unsent: true, ..Fault::upstream(ResponseFlags::UF, 503, detail) }
            }
            Ok((upstream, head)) => {
                let latency = sent.elapsed();
                endpoint.state.answered(latency);
                record.first_byte = Some(latency);
                if let Some(previous) = last {
                    tracing::debug!(endpoint = %endpoint.address, attempt, previous = previous.detail, "delivered by another attempt");
                }
                return Ok(Outcome::Answered(Answered {
                    upstream,
                    head,
                    edits: [route.response_edits().clone(), target.response_edits().clone()],
                    place: Place::Endpoint(endpoint),
                    _in_flight: Some(in_flight),
                }));
            }
            Err(fault) => {
                why = if fault.unsent { "connect" } else { DEAD };
                fault
            }
        };
        // Nothing may be sent twice, unless sending it twice does no harm, and all of it is still here.
        let again = body.is_still_here() && (fault.unsent || fault.silent && is_safe(head) && body.is_whole());
        if fault.unsent {
            tried.push(endpoint.address);
        }
        if why == DEAD {
            kept = Kept::Never;
        }
        last = Some(fault);
        if !again {
            break;
        }
        body.again();
    }
    let mut fault = last.unwrap_or_else(|| Fault::upstream(ResponseFlags::UH, 503, "no attempt was made"));
    if tried.len() > 1 {
        fault.flag |= ResponseFlags::URX;
    }
    fault.detail = format!("{} (cluster {}, attempts {})", fault.detail, cluster.name, tried.len().max(1));
    Err(fault)
}

/// Sends a request to the pod's own application.
///
/// # Errors
/// The fault of the last attempt.
pub(super) async fn to_app(
    worker: &Worker,
    caller: &mut Conn,
    app: SocketAddr,
    head: &RequestHead,
    body: &mut BodyPump,
    out: &mut BytesMut,
    record: &mut Record,
) -> Result<Answered, Fault> {
    let edits = own_edits(head, record);
    record.app = Some(app);
    let edits = [&edits];
    let sent = Instant::now();
    let mut kept = Kept::of(head);
    loop {
        let pooled = kept.take(|| worker.pool.take_app(app, Instant::now()));
        let Connected { conn, reused } = match pooled {
            Some(connected) => connected,
            None => match worker.connector.connect_app(app).await {
                Ok(stream) => Connected { conn: Conn::new(crate::net::Io::Plain(stream)), reused: false },
                Err(error) => return Err(unreachable(&error)),
            },
        };
        match over(worker, caller, app, conn, reused, head, &edits, body, out).await {
            Ok((upstream, head)) => {
                record.first_byte = Some(sent.elapsed());
                return Ok(Answered {
                    upstream,
                    head,
                    edits: [Edits::new(), Edits::new()],
                    place: Place::App(app),
                    _in_flight: None,
                });
            }
            Err(fault) if reused && fault.silent && is_safe(head) && body.is_whole() && body.is_still_here() => {
                kept = Kept::Never;
                body.again();
            }
            Err(fault) => return Err(fault),
        }
    }
}

/// Sends a request to an endpoint, over a kept connection or a new one.
#[allow(clippy::too_many_arguments)] // the parts of one request; a struct would only rename them
async fn send(
    worker: &Worker,
    caller: &mut Conn,
    meant: SocketAddr,
    endpoint: &Endpoint,
    kept: Kept,
    limit: Duration,
    head: &RequestHead,
    edits: &[&Edits],
    body: &mut BodyPump,
    out: &mut BytesMut,
) -> Result<(Conn, ResponseHead), Fault> {
    let Connected { conn, reused } = match kept.take(|| worker.pool.take(endpoint, Instant::now())) {
        Some(connected) => connected,
        None => Box::pin(connected(worker, endpoint, kept, limit)).await?,
    };
    over(worker, caller, meant, conn, reused, head, edits, body, out).await
}

/// A new connection to an endpoint, or a kept one that has become free meanwhile.
async fn connected(worker: &Worker, endpoint: &Endpoint, kept: Kept, limit: Duration) -> Result<Connected, Fault> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(_room) = worker.pool.room(endpoint) {
            return match worker.connector.connect(endpoint, Alpn::Http1, limit).await {
                Ok(conn) => {
                    endpoint.state.reached();
                    Ok(Connected { conn, reused: false })
                }
                Err(error) => {
                    endpoint.state.unreachable(Instant::now());
                    tracing::debug!(endpoint = %endpoint.address, %error, "endpoint not reached");
                    Err(unreachable(&error))
                }
            };
        }
        let waited = timeout_at(end, worker.pool.freed(endpoint)).await;
        if let Some(connected) = kept.take(|| worker.pool.take(endpoint, Instant::now())) {
            return Ok(connected);
        }
        // What the others have met would meet this one as well.
        if waited.is_err() || endpoint.state.is_avoided(Instant::now()) {
            let detail =
                format!("no connection to {}: others are being made, and none has come free", endpoint.address);
            return Err(Fault { unsent: true, ..Fault::upstream(ResponseFlags::UF, 503, detail) });
        }
    }
}

/// Sends a request over this connection and waits for the head of the answer. `meant` is the address that the caller called.
#[allow(clippy::too_many_arguments)] // as above
async fn over(
    worker: &Worker,
    caller: &mut Conn,
    meant: SocketAddr,
    mut conn: Conn,
    reused: bool,
    head: &RequestHead,
    edits: &[&Edits],
    body: &mut BodyPump,
    out: &mut BytesMut,
) -> Result<(Conn, ResponseHead), Fault> {
    out.clear();
    // An HTTP/1.0 client need not name a host; what goes out is HTTP/1.1, whose readers refuse a request without one.
    let named = head.authority().is_empty().then(|| meant.to_string());
    let authority = named.as_deref().map(str::as_bytes);
    write_request(out, head, edits, &ForwardRequest { authority, ..ForwardRequest::unchanged(head) });
    if let Err(error) = forward::write_first(&mut conn, out, caller, body).await {
        let fault = Fault::upstream(ResponseFlags::UC, 503, format!("sending the request failed: {error}"));
        return Err(Fault { silent: reused, ..fault });
    }
    body.first_written(caller);
    match await_head(caller, &mut conn, body, head.asked(), &worker.limits).await {
        Ok(response) => Ok((conn, response)),
        Err(fault) => Err(Fault { silent: fault.silent && reused, ..fault }),
    }
}

fn unreachable(error: &Unreachable) -> Fault {
    Fault { unsent: true, ..Fault::upstream(ResponseFlags::UF, 503, error.to_string()) }
}

/// Methods that change nothing (RFC 9110, section 9.2.1): sent again where a kept connection turned out to be dead.
fn is_safe(head: &RequestHead) -> bool {
    matches!(head.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
}

/// What the proxy itself changes in a request: one without an id gets one (UUID version 4), so that all hops log the same, and the
/// mesh's own marker goes to nobody's application.
pub(super) fn own_edits(head: &RequestHead, record: &mut Record) -> Edits {
    const ID: Name = Name::from_static("x-request-id");
    const MARKER: Name = Name::from_static(NOT_DELIVERED);
    let mut edits = Edits::new();
    if head.header(NOT_DELIVERED).next().is_some() {
        edits.remove(MARKER);
    }
    if head.header("x-request-id").next().is_some() {
        return edits;
    }
    let id = Bytes::copy_from_slice(&uuid(random(), random()));
    if let Ok(value) = Value::new(id.clone()) {
        edits.set(ID, value);
        record.request_id = Some(id);
    }
    edits
}

/// Random bits as the text of a UUID of version 4 (RFC 9562). By hand: `format!` took a twelfth of the proxy's own time for a request.
fn uuid(high: u64, low: u64) -> [u8; 36] {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    let bits = u128::from(high) << 64 | u128::from(low);
    let mut text = [b'-'; 36];
    let mut shift = u128::BITS;
    for (place, digit) in text.iter_mut().enumerate() {
        if !matches!(place, 8 | 13 | 18 | 23) {
            shift -= 4;
            *digit = DIGITS[usize::from((bits >> shift) as u8 & 0xf)];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::uuid;

    #[test]
    fn a_request_id_is_a_uuid_of_version_4() {
        let text = |high, low| String::from_utf8(uuid(high, low).to_vec()).unwrap();
        assert_eq!(text(0, 0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(text(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(text(0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdef), "01234567-89ab-4def-8123-456789abcdef");
    }
}

//! Finding somebody who answers: the route, the endpoint, the connection, and another one where nothing was delivered.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::time::{Instant, sleep};

use super::{NOT_DELIVERED, fault::Fault, record::Record};
use crate::{
    config::{Answer, Entry},
    http::{Edits, Name, RequestHead, Value},
    net::random,
    route::Action,
    serve::Worker,
    telemetry::ResponseFlags,
    upstream::{ClusterInfo, Endpoint, InFlight, pick},
};

/// Attempts for one request, the first included.
const ATTEMPTS: usize = 4;
/// Pause before an endpoint is tried for the second time.
const PAUSE: Duration = Duration::from_millis(25);
/// How long a request waits for room to make a connection.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Why a request is sent again: the kept connection that it went out on was dead.
const DEAD: &str = "dead_connection";

/// Which kept connections may carry a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All that seem alive: should one be dead after all, the request is sent again.
    Any,
    /// Those of which the kernel says so at this moment: the request can be sent once only.
    Proven,
    /// None.
    Never,
}

impl Kept {
    /// For the first attempt.
    pub(super) fn of(head: &RequestHead) -> Self {
        if is_safe(head) { Self::Any } else { Self::Proven }
    }
}

/// Carries one request over a connection, in its protocol. The choice of where to, and whether once more, is made here for all of them.
pub(super) trait Carrier {
    /// The head of an answer and where the rest of it comes from.
    type Answer;

    /// Sends the request to an endpoint and waits for the head of the answer.
    ///
    /// # Errors
    /// [`Fault`]; also where the peer's proxy says that its application was not reached.
    async fn send(
        &mut self,
        to: &Endpoint,
        kept: Kept,
        cluster: &ClusterInfo,
        edits: &[&Edits],
    ) -> Result<Self::Answer, Fault>;

    /// True while all that has come of the request is still here, so that another attempt can send it.
    fn is_still_here(&self) -> bool;

    /// True when the end of the request has come.
    fn is_whole(&self) -> bool;

    /// Another attempt begins.
    fn again(&mut self);
}

/// What came of a request.
#[allow(clippy::large_enum_variant)] // one a request, moved once; a box would be an allocation on the hot path
pub(super) enum Outcome<A> {
    /// An answer has begun.
    Answered(Answered<A>),
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
pub(super) struct Answered<A> {
    /// Its head, and where the rest comes from.
    pub answer: A,
    /// Changes to its headers, by the route and by the backend.
    pub edits: [Edits; 2],
    /// Where the connection goes when the answer is whole.
    pub place: Place,
    /// Counts the request at its endpoint.
    pub _in_flight: Option<InFlight>,
}

impl<A> Answered<A> {
    /// The pod's own application has answered.
    pub(super) fn by_app(answer: A, address: SocketAddr) -> Self {
        Self { answer, edits: [Edits::new(), Edits::new()], place: Place::App(address), _in_flight: None }
    }
}

/// Who has answered.
pub(super) enum Place {
    /// An endpoint.
    Endpoint(Arc<Endpoint>),
    /// The application.
    App(SocketAddr),
}

/// Sends a request where its destination's rules say.
///
/// # Errors
/// The fault of the last attempt.
pub(super) async fn to_destination<C: Carrier>(
    worker: &Worker,
    entry: &Entry,
    head: &RequestHead,
    carrier: &mut C,
    record: &mut Record,
) -> Result<Outcome<C::Answer>, Fault> {
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
    let mut why = "";
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
        let fault = match carrier.send(&endpoint, kept, &info, &edits).await {
            Ok(answer) => {
                let latency = sent.elapsed();
                endpoint.state.answered(latency);
                record.first_byte = Some(latency);
                if let Some(previous) = last {
                    tracing::debug!(endpoint = %endpoint.address, attempt, previous = previous.detail, "delivered by another attempt");
                }
                return Ok(Outcome::Answered(Answered {
                    answer,
                    edits: [route.response_edits().clone(), target.response_edits().clone()],
                    place: Place::Endpoint(endpoint),
                    _in_flight: Some(in_flight),
                }));
            }
            Err(fault) => fault,
        };
        why = match (fault.not_delivered, fault.unsent) {
            (true, _) => "not_delivered",
            (false, true) => "connect",
            (false, false) => DEAD,
        };
        if fault.not_delivered {
            endpoint.state.unreachable(Instant::now());
        }
        // Nothing may be sent twice, unless sending it twice does no harm, and all of it is still here.
        let again = carrier.is_still_here() && (fault.unsent || fault.silent && is_safe(head) && carrier.is_whole());
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
        carrier.again();
    }
    let mut fault = last.unwrap_or_else(|| Fault::upstream(ResponseFlags::UH, 503, "no attempt was made"));
    if tried.len() > 1 {
        fault.flag |= ResponseFlags::URX;
    }
    fault.detail = format!("{} (cluster {}, attempts {})", fault.detail, cluster.name, tried.len().max(1));
    Err(fault)
}

/// Methods that change nothing (RFC 9110, section 9.2.1): sent again where a kept connection turned out to be dead.
pub(super) fn is_safe(head: &RequestHead) -> bool {
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

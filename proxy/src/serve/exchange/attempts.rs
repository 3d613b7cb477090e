//! Finding somebody who answers: the route, the endpoint, the connection, and another one where nothing was delivered or a rule says so.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

pub(super) use super::carrier::{Answered, Carrier, Kept, Limits, Onward, Outcome, Place};
use super::{
    MARKER, claims,
    fault::Fault,
    mirror,
    record::Record,
    rules,
    tries::{Tries, retry_after, within},
};
use crate::{
    config::{Answer, Entry},
    http::{Edits, Name, RequestHead, Value},
    net::random,
    route::{Action, Attempt, Key, Route, Target, key},
    serve::Worker,
    telemetry::ResponseFlags,
    upstream::{Ask, Backend, Cluster, ClusterInfo, Endpoint, EndpointSet, InFlight, Verdict},
};

/// Pause before an endpoint is tried for the second time.
const PAUSE: Duration = Duration::from_millis(25);
/// How long a request waits for room to make a connection.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

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
    let own = |status, flag, reason: String| Ok(Outcome::Own(Fault::own(status, flag, reason)));
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
    record.route = Some(route.label());
    let Some(policy) = route.policy() else {
        return by_route(worker, route, &edits, head, carrier, record).await;
    };
    // Apart, for the few routes that ask more: what there is to remember is not in every request's way.
    let outcome = match rules::before(route, policy, head, carrier, record).await {
        Some(answer) => Ok(Outcome::Own(answer)),
        None => by_route(worker, route, &edits, head, carrier, record).await,
    };
    let lines = policy.cors.as_ref().and_then(|cors| cors.answer(head));
    Ok(match (outcome, lines) {
        (outcome, None) => return outcome,
        (Ok(Outcome::Answered(mut answered)), Some(lines)) => {
            let [_, edits] = &mut answered.edits;
            rules::set_lines(edits, lines);
            Outcome::Answered(answered)
        }
        (Ok(Outcome::Own(answer)), Some(_)) if answer.is_bare => Outcome::Own(answer),
        // A page may know that its request failed.
        (Ok(Outcome::Own(mut fault)), Some(lines)) => {
            fault.headers.extend(lines);
            Outcome::Own(fault)
        }
        (Err(mut fault), Some(lines)) => {
            fault.headers.extend(lines);
            return Err(fault);
        }
    })
}

/// Does what the route says.
async fn by_route<C: Carrier>(
    worker: &Worker,
    route: &Route<Backend>,
    edits: &Edits,
    head: &RequestHead,
    carrier: &mut C,
    record: &mut Record,
) -> Result<Outcome<C::Answer>, Fault> {
    let own = |status, flag, reason: String| Ok(Outcome::Own(Fault::own(status, flag, reason)));
    let split = match route.action() {
        Action::Forward(split) => split,
        Action::Respond(500) => return Ok(Outcome::Own(rules::invalid(route))),
        Action::Respond(status) => return own(*status, ResponseFlags::NONE, format!("{} answers so", route.name())),
        Action::Redirect(redirect) => return Ok(Outcome::Own(rules::redirected(redirect, route, head))),
    };
    let policy = route.policy();
    let path = match route.path_and_query(head) {
        Ok(path) => path,
        Err(bad) => return own(500, ResponseFlags::NONE, format!("{}: {bad}", route.name())),
    };
    let session = policy.and_then(|policy| policy.session.as_ref());
    let wanted = session.and_then(|session| session.of(head));
    let found = wanted.and_then(|address| split.targets().iter().find(|target| target.cluster().has(address)));
    if let (Some(_), None, Some(status)) = (wanted, found, session.and_then(|session| session.strict)) {
        return own(status, ResponseFlags::UH, format!("{}: the endpoint of this session is gone", route.name()));
    }
    let target = found.unwrap_or_else(|| split.pick());
    let mut way = Way { route, target, edits, path: path.as_deref(), wanted, copies: true };
    loop {
        match to_target(worker, &way, head, carrier, record).await {
            // Only sessions lead there: what it does not take the others do.
            Err(fault) if way.target.weight() == 0 && fault.is_nobodys() && carrier.is_still_here() => {
                tracing::debug!(reason = fault.detail, "the backend of a session has no weight and takes no request");
                way = Way { target: split.pick(), copies: false, ..way };
                carrier.again();
            }
            outcome => return outcome,
        }
    }
}

/// Where a request goes by its route.
struct Way<'a> {
    route: &'a Route<Backend>,
    target: &'a Target<Backend>,
    /// Changes of the proxy's own.
    edits: &'a Edits,
    /// Path and query, where the route changes them.
    path: Option<&'a [u8]>,
    /// The endpoint of the caller's session.
    wanted: Option<SocketAddr>,
    /// Copies are made, where the route wants any: once for each request.
    copies: bool,
}

/// Sends a request to one of the route's targets.
async fn to_target<C: Carrier>(
    worker: &Worker,
    way: &Way<'_>,
    head: &RequestHead,
    carrier: &mut C,
    record: &mut Record,
) -> Result<Outcome<C::Answer>, Fault> {
    let own = |status, flag, reason: String| Ok(Outcome::Own(Fault::own(status, flag, reason)));
    let Way { route, target, edits, path, wanted, copies } = *way;
    let policy = route.policy();
    let session = policy.and_then(|policy| policy.session.as_ref());
    let backend = target.cluster();
    let Some(cluster) = &backend.cluster else { return Ok(Outcome::Own(rules::invalid(route))) };
    record.cluster = Some(cluster.clone());
    let info = cluster.info().clone();
    record.service = info.service.clone();
    if let Some(service) = &info.service {
        record.route_series = Some(backend.series(&worker.shared.registry, service).clone());
    }
    let Some(endpoints) = cluster.endpoints().as_ref().cloned() else {
        return own(503, ResponseFlags::UH, format!("the endpoints of {} are not known yet", cluster.name));
    };
    let slot = match info.breaker.request() {
        Ok(slot) => slot,
        Err(full) => return Ok(Outcome::Own(Fault::full(full, &cluster.name))),
    };
    cluster.budget.deposit(info.allowance);
    let key = match policy {
        Some(policy) if !policy.key.is_empty() => key(&policy.key, head, record.caller, random()),
        _ => Key::default(),
    };
    let limits = Limits {
        deadline: policy.and_then(|policy| policy.timeout).map(|limit| record.start + limit),
        idle: policy.and_then(|policy| policy.idle),
    };
    let onward = Onward {
        edits: &[edits, route.request_edits(), target.request_edits()],
        path_and_query: path,
        host: policy.and_then(|policy| policy.host.as_deref()),
        idle: limits.idle,
    };
    let retry = policy.and_then(|policy| policy.retry.as_ref());
    let mirrors = policy.filter(|_| copies).map_or(&[][..], |policy| &policy.mirrors);
    if retry.is_some() || !mirrors.is_empty() {
        carrier.keep();
    }
    let tries = Tries::new(worker, cluster, &info, retry, limits.deadline, Kept::of(head));
    let mut delivery = Delivery { worker, cluster, info: &info, endpoints: &endpoints, hash: key.hash, wanted, tries };
    let delivered = delivery.deliver(head, carrier, &onward, record).await;
    if !mirrors.is_empty() {
        let edits = [edits, route.request_edits()];
        mirror::copy(worker, mirrors, head, carrier, &Onward { edits: &edits, ..onward });
    }
    let (answer, endpoint, in_flight) = delivered?;
    let mut edits = [route.response_edits().clone(), target.response_edits().clone()];
    let [_, last] = &mut edits;
    if let Some(line) = key.cookie {
        rules::set_line(last, "set-cookie", line);
    }
    if let Some(session) = session.filter(|_| wanted != Some(endpoint.address)) {
        let (name, line) = session.line(endpoint.address);
        rules::set_line(last, name, line);
    }
    Ok(Outcome::Answered(Answered {
        answer,
        edits,
        place: Place::Endpoint(endpoint, info),
        limits,
        _in_flight: Some(in_flight),
        _slot: slot,
    }))
}

/// A request on its way to one of a cluster's endpoints.
struct Delivery<'a> {
    worker: &'a Worker,
    cluster: &'a Cluster,
    info: &'a ClusterInfo,
    endpoints: &'a EndpointSet,
    hash: Option<u64>,
    /// The endpoint of the caller's session.
    wanted: Option<SocketAddr>,
    tries: Tries<'a>,
}

impl Delivery<'_> {
    /// An endpoint's answer: after as many attempts as it takes, and may.
    async fn deliver<C: Carrier>(
        &mut self,
        head: &RequestHead,
        carrier: &mut C,
        onward: &Onward<'_>,
        record: &mut Record,
    ) -> Result<(C::Answer, Arc<Endpoint>, InFlight), Fault> {
        let mut fault = loop {
            let Some(endpoint) = self.pick().cloned() else {
                let reason = format!("{} has no ready endpoint", self.cluster.name);
                return Err(Fault::own(503, ResponseFlags::UH, reason));
            };
            if self.tries.count > 0 && self.tries.tried.contains(&endpoint.address) {
                sleep(PAUSE.mul_f64(1.0 + (random() % 100) as f64 / 100.0)).await;
            }
            self.tries.count += 1;
            record.endpoint = Some(endpoint.clone());
            let in_flight = endpoint.state.enter();
            let sent = Instant::now();
            let came = {
                let sending = pin!(carrier.send(&endpoint, self.tries.kept, self.info, onward));
                within(self.tries.end(sent), sending).await
            };
            let fault = match came {
                Some(Ok(answer)) => {
                    let latency = sent.elapsed();
                    endpoint.state.answered(latency);
                    match self.again_after::<C>(&answer, &endpoint, carrier.is_still_here(), record.is_grpc) {
                        Some(pause) => {
                            carrier.discard(answer, &endpoint, self.info.keeping);
                            carrier.again();
                            drop(in_flight);
                            sleep(pause).await;
                            continue;
                        }
                        None => {
                            record.first_byte = Some(latency);
                            if self.tries.used_up {
                                record.flags |= ResponseFlags::URX;
                            }
                            return Ok((answer, endpoint, in_flight));
                        }
                    }
                }
                Some(Err(fault)) => fault,
                None => self.tries.late(),
            };
            if fault.not_delivered {
                endpoint.state.unreachable(Instant::now());
            }
            if !fault.is_upstreams() {
                break fault;
            }
            self.judge(&endpoint, Verdict::Unanswered);
            if fault.unsent || self.tries.has_rule() {
                self.tries.avoid(endpoint.address);
            }
            if self.tries.is_over() {
                break fault;
            }
            // Nothing may be sent twice, unless sending it twice does no harm or the rule says so, and all of it is still here.
            let here = carrier.is_still_here();
            if !self.tries.once_more(&fault, here, is_safe(head) && carrier.is_whole()) {
                let Some(pause) = self.tries.by_rule(fault.attempt(), here) else { break fault };
                drop(in_flight);
                sleep(pause).await;
            }
            tracing::debug!(endpoint = %endpoint.address, attempt = self.tries.count, reason = fault.detail, "sent again");
            carrier.again();
        };
        if self.tries.tried.len() > 1 || self.tries.used_up {
            fault.flag |= ResponseFlags::URX;
        }
        fault.detail = format!("{} (cluster {}, attempts {})", fault.detail, self.cluster.name, self.tries.count);
        Err(fault)
    }

    fn pick(&self) -> Option<&Arc<Endpoint>> {
        let ask = Ask { tried: &self.tries.tried, hash: self.hash, now: Instant::now() };
        let of_session = self.wanted.filter(|_| self.tries.count == 0);
        of_session.and_then(|address| self.endpoints.find(address, ask.now)).or_else(|| self.endpoints.pick(&ask))
    }

    /// The pause before another attempt, where the answer is one that the rule wants another for.
    fn again_after<C: Carrier>(
        &mut self,
        answer: &C::Answer,
        endpoint: &Endpoint,
        here: bool,
        is_grpc: bool,
    ) -> Option<Duration> {
        let status = C::status(answer);
        if matches!(status, 429 | 503)
            && let Some(pause) = C::header(answer, "retry-after").and_then(retry_after)
        {
            endpoint.state.leave_alone(Instant::now(), pause);
        }
        if self.info.outlier.is_none() && !self.tries.has_rule() {
            return None;
        }
        let grpc = C::header(answer, "grpc-status").filter(|_| is_grpc);
        let grpc = grpc.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        self.judge(endpoint, Verdict::Answered(grpc.map_or(status, rules::http_of_grpc)));
        let pause = self.tries.by_rule(Attempt::Answered(status, grpc), here);
        if pause.is_some() {
            self.tries.avoid(endpoint.address);
        }
        pause
    }

    fn judge(&self, endpoint: &Endpoint, verdict: Verdict) {
        self.worker.judge(self.cluster, self.info, self.endpoints, endpoint, verdict);
    }
}

/// Methods that change nothing (RFC 9110, section 9.2.1): sent again where a kept connection turned out to be dead.
pub(super) fn is_safe(head: &RequestHead) -> bool {
    matches!(head.method(), b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE")
}

/// What the proxy itself changes in a request: one without an id gets one (UUID version 4), so that all hops log the same, the
/// mesh's own marker goes to nobody's application, and so do claims of a stranger.
pub(super) fn own_edits(head: &RequestHead, record: &mut Record) -> Edits {
    const ID: Name = Name::from_static("x-request-id");
    let mut edits = Edits::new();
    if head.header(MARKER).next().is_some() {
        edits.remove(const { Name::from_static(MARKER) });
    }
    if record.stranger {
        claims::remove(head, &mut edits);
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

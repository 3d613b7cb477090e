//! What a route's rules do with a request before it goes on: some answer it themselves.

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{carrier::Carrier, fault::Fault, record::Record};
use crate::{
    http::{Edits, Framing, Name, RequestHead, Value},
    net::random,
    route::{Abort, Lines, Policy, Preflight, Redirect, Route},
    telemetry::ResponseFlags,
    upstream::Backend,
};

/// The answer that the rules give in the endpoint's place, after the delay that they may want; `None` where the request goes on.
pub(super) async fn before<C: Carrier>(
    route: &Route<Backend>,
    policy: &Policy<Backend>,
    head: &RequestHead,
    carrier: &mut C,
    record: &mut Record,
) -> Option<Fault> {
    let own = |status, flag, what: &str| Fault::own(status, flag, format!("{} {what}", route.name()));
    if let Some(preflight) = policy.cors.as_ref().and_then(|cors| cors.preflight(head)) {
        let (headers, what) = match preflight {
            Preflight::Allowed(headers) => (headers, "answers the preflight request"),
            Preflight::Refused => (Lines::new(), "does not know the origin of the preflight request"),
        };
        return Some(Fault { headers, is_bare: true, ..own(200, ResponseFlags::NONE, what) });
    }
    if let Some(rate) = &policy.rate
        && rate.share.takes(random())
        && !rate.bucket.take(Instant::now())
    {
        return Some(own(rate.status, ResponseFlags::RL, "takes no more requests at this time"));
    }
    if let Some(most) = policy.max_body {
        if matches!(head.framing(), Framing::Length(length) if length > most) {
            return Some(own(413, ResponseFlags::NONE, "takes no request as large as this"));
        }
        carrier.limit(most);
    }
    let injection = policy.injection.as_ref()?;
    if let Some((_, time)) = injection.delay.filter(|(share, _)| share.takes(random())) {
        record.flags |= ResponseFlags::DI;
        sleep(time).await;
    }
    let (_, abort) = injection.abort.filter(|(share, _)| share.takes(random()))?;
    Some(match abort {
        Abort::Http(status) => own(status, ResponseFlags::FI, "lets this request fail"),
        Abort::Grpc(status) => {
            let fault = own(http_of_grpc(status), ResponseFlags::FI, "lets this request fail");
            Fault { grpc_status: Some(status), ..fault }
        }
    })
}

/// The status of HTTP that stands for one of gRPC (google/rpc/code.proto).
pub(super) fn http_of_grpc(status: u8) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The answer where the route's backend is none.
pub(super) fn invalid(route: &Route<Backend>) -> Fault {
    let object = route.object().unwrap_or("its object");
    let reason = format!("{} names a backend that is not valid (see the status of {object})", route.name());
    Fault::own(500, ResponseFlags::NONE, reason)
}

/// The answer that names another place.
pub(super) fn redirected(redirect: &Redirect, route: &Route<Backend>, head: &RequestHead) -> Fault {
    match redirect.location(route, head) {
        Ok(location) => {
            let reason = format!("{} redirects", route.name());
            let answer = Fault::own(redirect.status, ResponseFlags::NONE, reason);
            Fault { headers: vec![("location", location.into())], is_bare: true, ..answer }
        }
        Err(bad) => Fault::own(500, ResponseFlags::NONE, format!("{}: {bad}", route.name())),
    }
}

/// Sets header lines of an answer.
pub(super) fn set_lines(edits: &mut Edits, lines: Lines) {
    for (name, value) in lines {
        set_line(edits, name, value);
    }
}

/// Sets a header line of an answer; a cookie stands beside others.
pub(super) fn set_line(edits: &mut Edits, name: &str, value: impl Into<Bytes>) {
    let (Ok(name), Ok(value)) = (Name::new(name), Value::new(value)) else { return };
    if name.as_bytes() == b"set-cookie" { edits.add(name, value) } else { edits.set(name, value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_grpc_stand_for_statuses_of_http() {
        assert_eq!([0, 1, 4, 7, 14, 16, 17].map(http_of_grpc), [200, 499, 504, 403, 503, 401, 500]);
    }
}

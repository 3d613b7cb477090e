//! The applications: what they answer is chosen by the request's headers.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::server;
use http::Response;
use weir_tests::{App, Flow, Netns, app::Request, http2::H2App};

/// What a request asks for, at all pods or only at that of `x-at`: an answer after `x-wait` milliseconds, with `x-status`, or none at
/// all (`x-close`). Every answer has `x-pod`, `x-said: app`, and of HTTP/1.1
/// `x-connection`, the port that it was called from.
struct Wish {
    wait: Duration,
    status: u16,
    close: bool,
}

impl Wish {
    fn read<'a>(pod: &str, header: impl Fn(&str) -> Option<&'a str>) -> Self {
        let here = |name: &str| header(name).filter(|_| header("x-at").is_none_or(|at| at == pod));
        let number = |name: &str| here(name).and_then(|text| text.parse::<u16>().ok());
        Self {
            wait: Duration::from_millis(number("x-wait").unwrap_or_default().into()),
            status: number("x-status").unwrap_or(200),
            close: here("x-close").is_some(),
        }
    }
}

/// Whether a pod is well: `/healthz` says it, and gRPC's health service.
pub(crate) type Well = Arc<AtomicBool>;

/// HTTP/1.1; the body is the head of the request.
pub(crate) fn http(netns: &Netns, port: u16, pod: &str, well: &Well) -> App {
    let (pod, well) = (pod.to_owned(), well.clone());
    App::http(netns, port, move |request, stream| {
        let mut wish = Wish::read(&pod, |name| request.header(name));
        health(request, &pod, &well, &mut wish);
        std::thread::sleep(wish.wait);
        if wish.close {
            return Ok(Flow::Close);
        }
        let body = &request.head;
        write!(stream, "HTTP/1.1 {} X\r\nx-pod: {pod}\r\nx-said: app\r\n", wish.status)?;
        write!(stream, "x-connection: {}\r\n", stream.peer_addr()?.port())?;
        match request.method() {
            // The connection would be a tunnel from here on.
            "CONNECT" => write!(stream, "\r\n").map(|()| Flow::Close),
            "HEAD" => write!(stream, "content-length: {}\r\n\r\n", body.len()).map(|()| Flow::Keep),
            _ => write!(stream, "content-length: {}\r\n\r\n{body}", body.len()).map(|()| Flow::Keep),
        }
    })
}

/// Paths that health checks ask: what pod `one` says of itself there.
fn health(request: &Request, pod: &str, well: &AtomicBool, wish: &mut Wish) {
    match &*request.path {
        "/healthz" if !well.load(SeqCst) => wish.status = 503,
        "/one-is-sick" if pod == "one" => wish.status = 503,
        "/one-is-slow" if pod == "one" => wish.wait = Duration::from_millis(300),
        "/one-is-a-teapot" if pod == "one" => wish.status = 418,
        "/one-is-sick-for-a-host" if pod == "one" && request.header("host") == Some("sick.example") => {
            wish.status = 503;
        }
        _ => {}
    }
}

/// gRPC: headers `got-x-NAME` say what came as `x-NAME`.
pub(crate) fn grpc(netns: &Netns, port: u16, pod: &str, well: &Well) -> H2App {
    let (pod, well) = (pod.to_owned(), well.clone());
    H2App::new(netns, port, server::Builder::new(), move |request, respond| {
        call(pod.clone(), well.clone(), request, respond)
    })
}

async fn call(
    pod: String,
    well: Well,
    request: http::Request<h2::RecvStream>,
    mut respond: server::SendResponse<Bytes>,
) {
    let (parts, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        message.extend(data);
    }
    let head = Response::builder().header("content-type", "application/grpc");
    if parts.uri.path() == "/grpc.health.v1.Health/Check" {
        // Of the service `sick` pod one says that it does not serve it.
        let sick = pod == "one" && message.ends_with(b"sick") || !well.load(SeqCst);
        let Ok(mut out) = respond.send_response(head.body(()).unwrap(), false) else { return };
        let _ = out.send_data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, if sick { 2 } else { 1 }]), false);
        let _ = out.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect());
        return;
    }
    let wish = Wish::read(&pod, |name| parts.headers.get(name)?.to_str().ok());
    tokio::time::sleep(wish.wait).await;
    let mut head = head.header("x-pod", &pod).header("x-said", "app");
    head = head.header("x-path", parts.uri.path()).header("grpc-status", if wish.status == 200 { "0" } else { "14" });
    for (name, value) in parts.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-")) {
        head = head.header(format!("got-{name}"), value);
    }
    let _ = respond.send_response(head.body(()).unwrap(), true);
}

/// Bytes: after the first one, who is here. A request of HTTP is never answered.
pub(crate) fn stream(netns: &Netns, port: u16, pod: &str) -> App {
    let pod = pod.to_owned();
    App::raw(netns, port, move |mut stream: TcpStream| {
        let mut first = [0];
        if stream.read_exact(&mut first).is_ok() {
            while first == *b"G" && stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {}
            let _ = stream.write_all(pod.as_bytes());
        }
    })
}

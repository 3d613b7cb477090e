//! Connections that the pod's application makes.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use super::{
    Worker,
    exchange::{self, Side},
    opaque,
    refuse::refuse,
};
use crate::{
    capture::OrigDst,
    config::{Answer, Entry, Outbound, Protocol},
    detect::{Spoken, spoken},
    net::{Conn, Io},
    telemetry::Direction,
};

/// How long the control plane may take to say what stands behind an address inside the mesh.
const ANSWER: Duration = Duration::from_secs(5);
/// Without a byte from the client for this long a stream is opaque: the server speaks first, or nobody does.
const SILENCE: Duration = Duration::from_millis(100);

const OUT: Direction = Direction::Outbound;

/// Serves one connection to its end. The larger stages are apart: a task is as large as its largest stage, whichever it comes to.
pub(super) async fn serve(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr, OrigDst(destination): OrigDst) {
    let conn = Conn::new(Io::Plain(stream));
    if !worker.shared.settings.is_inside(destination.ip()) {
        return Box::pin(opaque::passthrough(&worker, conn, peer, destination)).await;
    }
    let Some(entry) = worker.shared.store.outbound(destination) else {
        let detail = "this pod has connections open to more destinations than the proxy keeps";
        return refuse(&worker, OUT, &conn.io, peer, destination, "too_many_destinations", detail);
    };
    let known = entry.answer().as_ref().clone();
    let answer = match known {
        Answer::Waiting => worker.shared.store.wait(&entry, ANSWER).await,
        known => known,
    };
    match answer {
        Answer::Known(outbound) => known_destination(worker, conn, peer, entry, outbound).await,
        Answer::Unknown => Box::pin(opaque::passthrough(&worker, conn, peer, destination)).await,
        Answer::Waiting => {
            let trouble = worker.shared.store.trouble();
            let detail = trouble.as_deref().map_or("the control plane has not answered", String::as_str);
            refuse(&worker, OUT, &conn.io, peer, destination, "destination_not_known_yet", detail);
        }
    }
}

async fn known_destination(
    worker: Rc<Worker>,
    mut conn: Conn,
    peer: SocketAddr,
    entry: Arc<Entry>,
    outbound: Arc<Outbound>,
) {
    let forced = worker.shared.settings.opaque_ports.contains(&entry.address.port()) && outbound.streams.is_some();
    let protocol = if forced { Protocol::Opaque } else { outbound.protocol };
    let http = match protocol {
        Protocol::Http => {
            worker.detected(OUT, "http", "declared");
            true
        }
        Protocol::Opaque => {
            worker.detected(OUT, "opaque", "declared");
            false
        }
        Protocol::Detect => match detect(&worker, &mut conn, &entry).await {
            Some(http) => http,
            None => return, // the client is gone
        },
    };
    if http {
        exchange::serve(worker, conn, peer, Side::Outbound { entry }).await;
    } else if let Some(streams) = &outbound.streams {
        Box::pin(opaque::to_one_of(&worker, conn, peer, &entry, streams)).await;
    }
}

/// True for HTTP; `None` if the client went away.
async fn detect(worker: &Worker, conn: &mut Conn, entry: &Entry) -> Option<bool> {
    let uptime = worker.shared.store.uptime();
    if entry.memory.expects_silence(uptime) {
        worker.detected(OUT, "opaque", "remembered");
        return Some(false);
    }
    loop {
        match spoken(&conn.read) {
            Spoken::Unclear => {}
            Spoken::Http1 => {
                entry.memory.saw_http();
                worker.detected(OUT, "http", "first_bytes");
                return Some(true);
            }
            Spoken::Tls => {
                worker.detected(OUT, "tls", "first_bytes");
                return Some(false);
            }
            Spoken::Http2 => {
                entry.memory.saw_http();
                worker.detected(OUT, "http2", "first_bytes");
                return Some(true);
            }
            Spoken::Other => {
                worker.detected(OUT, "opaque", "first_bytes");
                return Some(false);
            }
        }
        match timeout(SILENCE, conn.fill()).await {
            Ok(Ok(0)) => return Some(false), // half-closed: it may wait for what the server says
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return None,
            Err(_) => {
                if conn.read.is_empty() {
                    entry.memory.saw_silence(uptime);
                }
                worker.detected(OUT, "opaque", "silence");
                return Some(false);
            }
        }
    }
}

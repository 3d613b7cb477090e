//! The gRPC service: one task per stream between tonic and the [`Session`].

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, task::Poll};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, body::Body, codegen::http};
use tonic_prost::ProstCodec;

use super::{Catalog, Event, Inbox, Limits, session::Session};
use crate::{
    Kind, MAX_MESSAGE_BYTES,
    client::PATH,
    wire::{DeltaRequest, DeltaResponse},
};

const SERVICE: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
/// Responses that wait to be written to the connection.
const OUTBOX: usize = 1;

/// Delta ADS for a tonic server.
pub struct AdsService<C> {
    catalog: Arc<C>,
    limits: Limits,
    shutdown: watch::Receiver<bool>,
}

impl<C> std::fmt::Debug for AdsService<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdsService").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl<C> AdsService<C> {
    /// Serves this catalog. All streams end when `shutdown` becomes true, so that clients go to another replica.
    pub fn new(catalog: Arc<C>, limits: Limits, shutdown: watch::Receiver<bool>) -> Self {
        Self { catalog, limits, shutdown }
    }
}

impl<C> Clone for AdsService<C> {
    fn clone(&self) -> Self {
        Self { catalog: self.catalog.clone(), limits: self.limits, shutdown: self.shutdown.clone() }
    }
}

impl<C> tonic::server::NamedService for AdsService<C> {
    const NAME: &'static str = SERVICE;
}

impl<C: Catalog> tonic::codegen::Service<http::Request<Body>> for AdsService<C> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("only DeltaAggregatedResources is served").into_http());
            }
            let codec = ProstCodec::<DeltaResponse, DeltaRequest>::default();
            let mut grpc = tonic::server::Grpc::new(codec)
                .apply_max_message_size_config(Some(MAX_MESSAGE_BYTES), Some(MAX_MESSAGE_BYTES));
            Ok(grpc.streaming(Open(service), request).await)
        })
    }
}

struct Open<C>(AdsService<C>);

impl<C: Catalog> tonic::server::StreamingService<DeltaRequest> for Open<C> {
    type Response = DeltaResponse;
    type ResponseStream = ReceiverStream<Result<DeltaResponse, Status>>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<DeltaRequest>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            if *service.shutdown.borrow() {
                return Err(shutting_down());
            }
            let caller = service.catalog.authenticate(request.metadata()).await?;
            let (sender, receiver) = mpsc::channel(OUTBOX);
            tokio::spawn(async move {
                let stream = Stream::open(service, caller);
                if let Err(status) = stream.run(request.into_inner(), &sender).await {
                    sender.send(Err(status)).await.ok(); // a client that is gone needs no status
                }
            });
            Ok(Response::new(ReceiverStream::new(receiver)))
        })
    }
}

fn shutting_down() -> Status {
    Status::unavailable("this replica of the control plane shuts down; reconnect")
}

/// One open stream. Gives its names up when it is dropped.
struct Stream<C: Catalog> {
    catalog: Arc<C>,
    caller: C::Caller,
    inbox: Arc<Inbox>,
    session: Session,
    shutdown: watch::Receiver<bool>,
}

impl<C: Catalog> Stream<C> {
    fn open(service: AdsService<C>, caller: C::Caller) -> Self {
        let AdsService { catalog, limits, shutdown } = service;
        Self { catalog, caller, inbox: Arc::default(), session: Session::new(limits), shutdown }
    }

    async fn run(
        mut self,
        mut requests: Streaming<DeltaRequest>,
        responses: &mpsc::Sender<Result<DeltaResponse, Status>>,
    ) -> Result<(), Status> {
        let expiry = tokio::time::sleep(self.catalog.valid_for(&self.caller));
        tokio::pin!(expiry);
        let mut shutdown = self.shutdown.clone();
        let mut admitted = false;
        loop {
            tokio::select! {
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    if !admitted {
                        let node = request.node.clone().unwrap_or_default();
                        self.catalog.admit(&self.caller, &node)?;
                        admitted = true;
                    }
                    self.request(request);
                }
                permit = responses.reserve(), if self.session.may_send() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(response) = self.next() {
                        permit.send(Ok(response));
                    }
                }
                () = self.inbox.woken() => {
                    let changed = self.inbox.take();
                    self.session.changed(changed.names, changed.since);
                }
                () = responses.closed() => return Ok(()),
                () = &mut expiry => {
                    return Err(Status::unauthenticated("the token of this stream has expired; reconnect with a new one"));
                }
                _ = shutdown.wait_for(|down| *down) => return Err(shutting_down()),
            }
        }
    }

    fn next(&mut self) -> Option<DeltaResponse> {
        let (catalog, caller) = (&self.catalog, &self.caller);
        let out = self.session.next(|kind, name| catalog.lookup(caller, kind, name))?;
        let (resources, removed) = (out.response.resources.len(), out.response.removed.len());
        catalog.event(caller, Event::Sent { kind: out.kind, resources, removed, waited: out.waited });
        Some(out.response)
    }

    fn request(&mut self, request: DeltaRequest) {
        let (catalog, caller) = (&self.catalog, &self.caller);
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            let type_url: String = request.type_url.chars().take(crate::MAX_NAME_BYTES).collect();
            tracing::debug!(?type_url, "a type was asked for that is not served");
            return;
        };
        let wishes = self.session.request(kind, request);
        match (wishes.answered, &wishes.error) {
            (Some(_), Some(reason)) => catalog.event(caller, Event::Nacked { kind, reason }),
            (Some(after), None) => catalog.event(caller, Event::Acked { kind, after }),
            (None, _) => {}
        }
        if !wishes.unsubscribe.is_empty() {
            catalog.unsubscribe(caller, &self.inbox, kind, &wishes.unsubscribe);
        }
        if !wishes.subscribe.is_empty() {
            catalog.subscribe(caller, &self.inbox, kind, &wishes.subscribe);
        }
        if wishes.refused > 0 {
            catalog.event(caller, Event::Refused { kind, names: wishes.refused });
        }
    }
}

impl<C: Catalog> Drop for Stream<C> {
    fn drop(&mut self) {
        let session = std::mem::replace(&mut self.session, Session::new(Limits::default()));
        self.catalog.close(&self.caller, &self.inbox, session.into_names());
    }
}

//! Delta ADS client: asks by name, keeps what it was told across connections, and reconnects for ever.
//!
//! [`state`] is the protocol without I/O; this module connects it to gRPC. The caller's [`Handler`] is called from the task
//! that runs [`Client::run`], one call at a time.

mod backoff;
mod state;
mod subscriptions;

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue},
    transport::Endpoint,
};
use tonic_prost::ProstCodec;

use crate::{
    Kind, MAX_MESSAGE_BYTES, Resource,
    tls::chain,
    wire::{DeltaRequest, DeltaResponse, Node},
};
use backoff::Backoff;
use state::State;
pub use subscriptions::{MAX_SUBSCRIPTIONS, Subscriptions};

pub(crate) const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Requests that wait to be written; more are kept in order behind it.
const OUTBOX: usize = 4;

/// A resource that the handler does not take, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Name of the resource.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// State of the connection to the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// The stream is open; what changed meanwhile is on its way.
    Connected,
    /// There is no stream. What was told stays valid.
    Disconnected {
        /// Why, for people.
        reason: String,
        /// When it is tried again.
        retry_in: Duration,
    },
}

/// Takes what the control plane says.
pub trait Handler: Send {
    /// New or changed resources of one kind, and names that do not exist (or no longer). Only names that were asked for and
    /// only real changes arrive here. Resources that are not taken are returned: their old versions stay in force, the control
    /// plane is told why, and all others of the same call count as taken.
    fn apply(&mut self, kind: Kind, added: Vec<Resource>, removed: Vec<String>) -> Vec<Rejection>;

    /// The connection has changed.
    fn connection(&mut self, state: ConnectionState);
}

/// Times of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Time for the connection, its TLS handshake and the stream's first answer.
    pub connect: Duration,
    /// Silence after which the peer is asked whether it lives.
    pub keep_alive: Duration,
    /// Time for that answer.
    pub keep_alive_timeout: Duration,
    /// First wait before another try.
    pub backoff_min: Duration,
    /// Longest wait before another try.
    pub backoff_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            keep_alive: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// A delta ADS client. `F` makes the endpoint for each connection (so that changed addresses and roots are taken up), `T`
/// reads the token for it.
pub struct Client<F, T, H> {
    endpoints: F,
    tokens: T,
    handler: H,
    node: Node,
    timing: Timing,
    subscriptions: Subscriptions,
    state: State,
}

impl<F, T, H> fmt::Debug for Client<F, T, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("node", &self.node.id).finish_non_exhaustive()
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Endpoint(String),
    #[error("the token can not be read: {0}")]
    Token(String),
    #[error("{0}")]
    Connect(String),
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    #[error("the control plane ended the stream ({:?}): {}", .0.code(), .0.message())]
    Status(Status),
    #[error("the control plane closed the stream")]
    Closed,
}

impl<F, E, T, X, H> Client<F, T, H>
where
    F: Fn() -> Result<Endpoint, E> + Send,
    E: fmt::Display,
    T: Fn() -> Result<String, X> + Send,
    X: fmt::Display,
    H: Handler,
{
    /// A client for the pod `node_id` (`POD.NAMESPACE`). Nothing happens before [`Client::run`].
    pub fn new(endpoints: F, node_id: impl Into<String>, tokens: T, handler: H) -> Self {
        let node = Node {
            id: node_id.into(),
            cluster: String::new(),
            user_agent_name: "weir-proxy".into(),
            user_agent_version: env!("CARGO_PKG_VERSION").into(),
        };
        let subscriptions = Subscriptions::default();
        Self { endpoints, tokens, handler, node, timing: Timing::default(), subscriptions, state: State::default() }
    }

    /// Other times than the default ones.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The handle by which names are asked for, from any thread.
    pub fn subscriptions(&self) -> Subscriptions {
        self.subscriptions.clone()
    }

    /// Connects, follows the stream, and reconnects for ever. Dropping the future ends it.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.backoff_min, self.timing.backoff_max);
        loop {
            let lost = match self.connect().await {
                Ok((requests, responses)) => {
                    self.handler.connection(ConnectionState::Connected);
                    let (lost, useful) = self.follow(requests, responses).await;
                    if useful {
                        backoff.reset();
                    }
                    lost
                }
                Err(lost) => lost,
            };
            self.subscriptions.disconnected();
            let retry_in = backoff.next();
            self.handler.connection(ConnectionState::Disconnected { reason: lost.to_string(), retry_in });
            tokio::time::sleep(retry_in).await;
        }
    }

    async fn connect(&self) -> Result<(mpsc::Sender<DeltaRequest>, Streaming<DeltaResponse>), Lost> {
        let timing = self.timing;
        let endpoint = (self.endpoints)().map_err(|error| Lost::Endpoint(error.to_string()))?;
        let token = (self.tokens)().map_err(|error| Lost::Token(error.to_string()))?;
        let endpoint = endpoint
            .connect_timeout(timing.connect)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(timing.keep_alive)
            .keep_alive_timeout(timing.keep_alive_timeout)
            .keep_alive_while_idle(true);
        let open = async {
            let channel = endpoint.connect().await.map_err(|error| Lost::Connect(chain(&error)))?;
            let mut grpc = tonic::client::Grpc::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            grpc.ready().await.map_err(|error| Lost::Connect(chain(&error)))?;
            let (sender, receiver) = mpsc::channel(OUTBOX);
            let mut request = Request::new(ReceiverStream::new(receiver));
            request.metadata_mut().insert("authorization", bearer(&token).map_err(Lost::Status)?);
            let codec = ProstCodec::<DeltaRequest, DeltaResponse>::default();
            let response =
                grpc.streaming(request, PathAndQuery::from_static(PATH), codec).await.map_err(Lost::Status)?;
            Ok((sender, response.into_inner()))
        };
        tokio::time::timeout(timing.connect, open).await.map_err(|_| Lost::TimedOut(timing.connect))?
    }

    /// Follows one stream to its end; the flag says whether it was of use.
    async fn follow(
        &mut self,
        requests: mpsc::Sender<DeltaRequest>,
        mut responses: Streaming<DeltaResponse>,
    ) -> (Lost, bool) {
        let changed = self.subscriptions.changed();
        let wanted = self.subscriptions.connected();
        let mut outbox: VecDeque<DeltaRequest> = self.state.reconnect(wanted).into();
        let mut node = Some(self.node.clone());
        let mut useful = false;
        loop {
            tokio::select! {
                permit = requests.reserve(), if !outbox.is_empty() => {
                    let Ok(permit) = permit else { return (Lost::Closed, useful) };
                    if let Some(mut request) = outbox.pop_front() {
                        request.node = node.take();
                        permit.send(request);
                    }
                }
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        useful = true;
                        let handler = &mut self.handler;
                        let answer = self.state.response(response, |kind, added, removed| handler.apply(kind, added, removed));
                        outbox.extend(answer);
                    }
                    Ok(None) => return (Lost::Closed, useful),
                    Err(status) => return (Lost::Status(status), useful),
                },
                // What changes while requests wait to be written is put together.
                () = changed.notified(), if outbox.is_empty() => {
                    outbox.extend(self.state.change(self.subscriptions.take_changes()));
                }
            }
        }
    }
}

/// The value of the `authorization` header.
pub(crate) fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Status> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
        .parse()
        .map_err(|_| Status::unauthenticated("the token holds characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Names are shared between the subscriptions and the state.
pub(crate) type NameRef = Arc<str>;

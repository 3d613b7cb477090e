//! A gRPC server that says who it is: `weir.test.Echo` with every kind of call, and `grpc.health.v1.Health`. And its client.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _, stream};
use hyper::{Request, Response, Uri, body::Incoming};
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming, body::Body, codegen::http::uri::PathAndQuery, transport::Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn as method;

/// What is asked and answered in `weir.test.Echo`.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
    /// Asked: how many answers a server's stream is to have. Answered: which of them this is, from 0.
    #[prost(uint32, tag = "2")]
    number: u32,
    /// Answered: the server's pod.
    #[prost(string, tag = "3")]
    pod: String,
    /// Answered: the host that the server was asked for.
    #[prost(string, tag = "4")]
    authority: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthAnswer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The service, as `grpc.health.v1` is asked for it.
const ECHO: &str = "weir.test.Echo";
/// `SERVING` of `grpc.health.v1`.
const SERVING: i32 = 1;
/// Longest stream that a server makes.
const MAX_ANSWERS: u32 = 100_000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves until SIGTERM.
pub(crate) async fn run(listen: SocketAddr) -> Result<ExitCode> {
    crate::listen::serve(listen, |request, _| answer(request)).await
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let said = move |text, number| Text { text, number, pod: crate::pod(), authority: authority.clone() };
    let mut texts = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
    let mut health = tonic::server::Grpc::new(ProstCodec::<HealthAnswer, HealthRequest>::default());
    // As a whole, and by the name of its service.
    let serving = |asked: tonic::Request<HealthRequest>| async move {
        match &*asked.into_inner().service {
            "" | ECHO => Ok(tonic::Response::new(HealthAnswer { status: SERVING })),
            _ => Err(Status::not_found("no such service")),
        }
    };
    Ok(match request.uri().path() {
        "/weir.test.Echo/Unary" => {
            let unary = |asked: tonic::Request<Text>| {
                let said = said(asked.into_inner().text, 0);
                async { Ok(tonic::Response::new(said)) }
            };
            texts.unary(method(unary), request).await
        }
        "/weir.test.Echo/ServerStream" => {
            let answers = |asked: tonic::Request<Text>| {
                let (asked, said) = (asked.into_inner(), said.clone());
                let numbers = stream::iter(0..asked.number.min(MAX_ANSWERS));
                let answers = numbers.map(move |number| Ok(said(asked.text.clone(), number)));
                async { Ok(tonic::Response::new(Box::pin(answers) as Answers<Text>)) }
            };
            texts.server_streaming(method(answers), request).await
        }
        "/weir.test.Echo/ClientStream" => {
            let together = |asked: tonic::Request<Streaming<Text>>| {
                let (mut asked, said) = (asked.into_inner(), said.clone());
                async move {
                    let (mut text, mut number) = (String::new(), 0);
                    while let Some(next) = asked.message().await? {
                        text.push_str(&next.text);
                        number += 1;
                    }
                    Ok(tonic::Response::new(said(text, number)))
                }
            };
            texts.client_streaming(method(together), request).await
        }
        "/weir.test.Echo/Bidirectional" => {
            let each = |asked: tonic::Request<Streaming<Text>>| {
                let (asked, said) = (asked.into_inner().zip(stream::iter(0..)), said.clone());
                let answers = asked.map(move |(asked, number)| Ok(said(asked?.text, number)));
                async { Ok(tonic::Response::new(Box::pin(answers) as Answers<Text>)) }
            };
            texts.streaming(method(each), request).await
        }
        "/grpc.health.v1.Health/Check" => health.unary(method(serving), request).await,
        "/grpc.health.v1.Health/Watch" => {
            // It never changes, and ends with the server.
            let watch = |_: tonic::Request<HealthRequest>| async {
                let states = stream::iter([Ok(HealthAnswer { status: SERVING })]).chain(stream::pending());
                Ok(tonic::Response::new(Box::pin(states) as Answers<HealthAnswer>))
            };
            health.server_streaming(method(watch), request).await
        }
        path => Status::unimplemented(format!("no method {path}")).into_http(),
    })
}

#[derive(Debug, clap::Args)]
pub(crate) struct Call {
    /// http://HOST[:PORT]
    url: Uri,
    #[arg(value_enum, default_value = "unary")]
    method: Method,
    /// Messages of a stream; for others, calls on one connection
    #[arg(long, default_value_t = 1)]
    count: u32,
    #[arg(long, default_value = "hello")]
    text: String,
    /// Between the messages of a bidirectional stream, each of which waits for the answer to the one before
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// For everything, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Method {
    Unary,
    ServerStream,
    ClientStream,
    Bidirectional,
    Health,
    HealthWatch,
}

/// Prints every answer as a line of JSON, and ends with success if there was no error.
pub(crate) async fn call(arguments: &Call) -> Result<ExitCode> {
    let limit = Duration::from_secs(arguments.seconds);
    timeout(limit, talk(arguments)).await.with_context(|| format!("no end within {limit:?}"))??;
    Ok(ExitCode::SUCCESS)
}

async fn talk(arguments: &Call) -> Result<()> {
    let Call { count, pause_ms, .. } = *arguments;
    let channel = Endpoint::from(arguments.url.clone()).connect().await?;
    let mut grpc = tonic::client::Grpc::new(channel);
    let codec = ProstCodec::<Text, Text>::default();
    let health = ProstCodec::<HealthRequest, HealthAnswer>::default();
    let method = |name: &'static str| PathAndQuery::from_static(name);
    let text = Text { text: arguments.text.clone(), number: count, ..Text::default() };
    grpc.ready().await?;
    match arguments.method {
        Method::Unary => {
            for _ in 0..count {
                grpc.ready().await?;
                let request = tonic::Request::new(text.clone());
                print(grpc.unary(request, method("/weir.test.Echo/Unary"), codec.clone()).await?.get_ref());
            }
        }
        Method::ServerStream => {
            let request = tonic::Request::new(text);
            let path = method("/weir.test.Echo/ServerStream");
            let mut answers = grpc.server_streaming(request, path, codec).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                print(&answer);
            }
        }
        Method::ClientStream => {
            let request = tonic::Request::new(stream::iter(0..count).map(move |_| text.clone()));
            print(grpc.client_streaming(request, method("/weir.test.Echo/ClientStream"), codec).await?.get_ref());
        }
        Method::Bidirectional => {
            let (answered, ready) = tokio::sync::mpsc::channel::<()>(1);
            answered.send(()).await?;
            let questions = stream::unfold((ready, 0..count), move |(mut ready, mut left)| {
                let text = text.clone();
                async move {
                    left.next()?;
                    ready.recv().await?;
                    Some((text, (ready, left)))
                }
            });
            let request = tonic::Request::new(questions);
            let mut answers =
                grpc.streaming(request, method("/weir.test.Echo/Bidirectional"), codec).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                print(&answer);
                sleep(Duration::from_millis(pause_ms)).await;
                // Refused when the last question is out.
                let _ = answered.send(()).await;
            }
        }
        Method::Health => {
            let request = tonic::Request::new(HealthRequest::default());
            let answer = grpc.unary(request, method("/grpc.health.v1.Health/Check"), health).await?;
            println!("{}", serde_json::json!({"status": answer.get_ref().status}));
        }
        Method::HealthWatch => {
            let request = tonic::Request::new(HealthRequest::default());
            let path = method("/grpc.health.v1.Health/Watch");
            let mut answers = grpc.server_streaming(request, path, health).await?.into_inner();
            for _ in 0..count {
                let answer = answers.message().await?.context("the watch ended")?;
                println!("{}", serde_json::json!({"status": answer.status}));
            }
        }
    }
    Ok(())
}

fn print(answer: &Text) {
    let Text { text, number, pod, authority } = answer;
    println!("{}", serde_json::json!({"pod": pod, "text": text, "number": number, "authority": authority}));
}

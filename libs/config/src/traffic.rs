//! Weir's own kind: `TrafficPolicy` of `weir.dev/v1alpha1`, for what neither Gateway API nor Istio has.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// Group of the API.
pub const GROUP: &str = "weir.dev";
/// The version.
pub const API_VERSION: &str = "weir.dev/v1alpha1";
/// Name of the kind.
pub const TRAFFIC_POLICY: &str = "TrafficPolicy";

/// What is done to a service or to requests, besides rules.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// Group and version of the API.
    pub api_version: String,
    /// The kind's name.
    pub kind: String,
    /// Name, namespace and the rest.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: TrafficPolicySpec,
    /// Written by controllers; not read.
    #[serde(default)]
    pub status: Option<serde_json::Value>,
}

/// What is wanted of a TrafficPolicy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicySpec {
    /// What it is for, of its own namespace.
    pub target_refs: Vec<TargetRef>,
    /// How endpoints are asked whether they are well; for a Service.
    pub health_checks: Vec<HealthCheck>,
    /// Share of retries; for a Service.
    pub retry_budget: Option<RetryBudget>,
    /// Faults that are made.
    pub fault: Option<Fault>,
    /// How many requests, for each proxy.
    pub rate_limit: Option<RateLimit>,
    /// Sizes.
    pub limits: Option<Limits>,
}

/// What a policy is for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// Group of the API; empty for Services.
    pub group: String,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// One rule of a route, by its name.
    pub section_name: Option<String>,
}

/// How endpoints are asked whether they are well.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// By what.
    #[serde(rename = "type")]
    pub kind: CheckType,
    /// How often; 10 s.
    pub interval: Option<String>,
    /// Time for an answer; 1 s.
    pub timeout: Option<String>,
    /// Failures until it is not well; 3.
    pub unhealthy_threshold: Option<i64>,
    /// Successes until it is well; 1.
    pub healthy_threshold: Option<i64>,
    /// For type HTTP.
    pub http: Option<HttpCheck>,
    /// For type GRPC.
    pub grpc: Option<GrpcCheck>,
}

/// What a check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum CheckType {
    /// A request.
    #[serde(rename = "HTTP")]
    Http,
    /// gRPC's health service.
    #[serde(rename = "GRPC")]
    Grpc,
    /// A connection.
    #[serde(rename = "TCP")]
    Tcp,
}

/// A request that asks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpCheck {
    /// Path; `/`.
    pub path: Option<String>,
    /// Host; the Service's.
    pub host: Option<String>,
    /// Statuses of one that is well; 200.
    pub statuses: Vec<i64>,
}

/// A call that asks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcCheck {
    /// Service; the whole server.
    pub service: Option<String>,
}

/// Share of retries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Of the requests under way; 20.
    pub percent: Option<f64>,
    /// So many are always allowed; 3.
    pub min_concurrency: Option<i64>,
}

/// Faults that are made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fault {
    /// Some wait.
    pub delay: Option<Delay>,
    /// Some fail.
    pub abort: Option<Abort>,
}

/// Requests wait.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// For so long.
    pub fixed_delay: String,
    /// Share; 100.
    pub percent: Option<f64>,
}

/// Requests fail.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// By a status of HTTP.
    pub http_status: Option<i64>,
    /// By a status of gRPC, by number.
    pub grpc_status: Option<i64>,
    /// Share; 100.
    pub percent: Option<f64>,
}

/// How many requests.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimit {
    /// So many.
    pub requests: i64,
    /// In this time; 1 s.
    pub interval: Option<String>,
    /// Most at once; as many as `requests`.
    pub burst: Option<i64>,
}

/// Sizes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Most bytes of a request's body.
    pub request_body_bytes: Option<i64>,
}

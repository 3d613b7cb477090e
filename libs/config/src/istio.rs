//! Istio's DestinationRule (`networking.istio.io/v1`, and its earlier versions, which are the same), as far as it is supported: what the
//! API has besides is refused by name ([`unsupported`]).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::path::FieldPath;

/// Group of the API.
pub const GROUP: &str = "networking.istio.io";
/// The version that all versions are read as.
pub const API_VERSION: &str = "networking.istio.io/v1";
/// The earlier versions, with the same fields.
pub const EARLIER_API_VERSIONS: [&str; 2] = ["networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
/// Name of the kind.
pub const DESTINATION_RULE: &str = "DestinationRule";

/// Declares structs whose fields may all be left out.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
        )*
    };
}

/// How a service is called.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// Group and version of the API.
    pub api_version: String,
    /// The kind's name.
    pub kind: String,
    /// Name, namespace and the rest.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: DestinationRuleSpec,
    /// Written by controllers; not read.
    #[serde(default)]
    pub status: Option<serde_json::Value>,
}

fields! {
    /// What is wanted of a DestinationRule.
    DestinationRuleSpec {
        /// The Service: `NAME`, or `NAME.NAMESPACE.svc` with or without the cluster's domain.
        host: String,
        /// How it is called.
        traffic_policy: Option<TrafficPolicy>,
    }
    /// How a service is called.
    TrafficPolicy {
        /// Which endpoint.
        load_balancer: Option<LoadBalancer>,
        /// Limits.
        connection_pool: Option<ConnectionPool>,
        /// Who is left out.
        outlier_detection: Option<OutlierDetection>,
        /// The same for single ports.
        port_level_settings: Vec<PortSettings>,
    }
    /// How a port is called.
    PortSettings {
        /// The port.
        port: PortSelector,
        /// Which endpoint.
        load_balancer: Option<LoadBalancer>,
        /// Limits.
        connection_pool: Option<ConnectionPool>,
        /// Who is left out.
        outlier_detection: Option<OutlierDetection>,
    }
    /// A port.
    PortSelector {
        /// Its number.
        number: i64,
    }
    /// Which endpoint.
    LoadBalancer {
        /// A way without a key.
        simple: Option<Simple>,
        /// The same one for the same key.
        consistent_hash: Option<ConsistentHash>,
        /// Which places first.
        locality_lb_setting: Option<LocalitySetting>,
        /// New ones get less.
        warmup: Option<Warmup>,
        /// The earlier form of `warmup`.
        warmup_duration_secs: Option<String>,
    }
    /// The same endpoint for the same key.
    ConsistentHash {
        /// Key: a header.
        http_header_name: Option<String>,
        /// Key: a cookie.
        http_cookie: Option<Cookie>,
        /// Key: the caller's address.
        use_source_ip: Option<bool>,
        /// Key: a parameter of the query.
        http_query_parameter_name: Option<String>,
        /// By a ring.
        ring_hash: Option<RingHash>,
        /// By Maglev's table.
        maglev: Option<Maglev>,
        /// The earlier form of `ringHash`.
        minimum_ring_size: Option<i64>,
    }
    /// A cookie.
    Cookie {
        /// Name.
        name: String,
        /// Path.
        path: Option<String>,
        /// Life time.
        ttl: Option<String>,
    }
    /// A ring.
    RingHash {
        /// At least so many points.
        minimum_ring_size: Option<i64>,
    }
    /// Maglev's table.
    Maglev {
        /// A prime number.
        table_size: Option<i64>,
    }
    /// Which places first.
    LocalitySetting {
        /// On, unless false.
        enabled: Option<bool>,
        /// By percent.
        distribute: Vec<Distribute>,
        /// Where else.
        failover: Vec<Failover>,
    }
    /// Shares of places.
    Distribute {
        /// Place of callers.
        from: String,
        /// Percent by place.
        to: BTreeMap<String, i64>,
    }
    /// Where else.
    Failover {
        /// Region of callers.
        from: String,
        /// Region that comes next.
        to: String,
    }
    /// New endpoints get less.
    Warmup {
        /// For so long.
        duration: Option<String>,
        /// Percent at first.
        minimum_percent: Option<f64>,
        /// How it grows.
        aggression: Option<f64>,
    }
    /// Limits.
    ConnectionPool {
        /// Of connections.
        tcp: Option<TcpPool>,
        /// Of requests.
        http: Option<HttpPool>,
    }
    /// Limits of connections.
    TcpPool {
        /// Most at a time.
        max_connections: Option<i64>,
        /// Time that one may take.
        connect_timeout: Option<String>,
    }
    /// Limits of requests.
    HttpPool {
        /// Most that wait.
        http1_max_pending_requests: Option<i64>,
        /// Most at a time.
        http2_max_requests: Option<i64>,
        /// Of one connection.
        max_requests_per_connection: Option<i64>,
        /// Most retries at a time.
        max_retries: Option<i64>,
        /// Without requests.
        idle_timeout: Option<String>,
    }
    /// Who is left out.
    OutlierDetection {
        /// In a row.
        consecutive_5xx_errors: Option<i64>,
        /// In a row.
        consecutive_gateway_errors: Option<i64>,
        /// In a row.
        consecutive_local_origin_failures: Option<i64>,
        /// Apart.
        split_external_local_origin_errors: Option<bool>,
        /// How often.
        interval: Option<String>,
        /// For how long.
        base_ejection_time: Option<String>,
        /// Most at a time.
        max_ejection_percent: Option<i64>,
        /// All count if fewer are left.
        min_health_percent: Option<i64>,
    }
}

/// Ways without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Simple {
    /// The default.
    Unspecified,
    /// The better of two.
    LeastRequest,
    /// Its earlier name.
    LeastConn,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// Where the caller wanted to go; not supported.
    Passthrough,
}

/// Fields that Istio has and this build has not, by the end of their path, with what to do instead.
const UNSUPPORTED: [(&str, &str); 21] = [
    ("spec.subsets", "give each version a Service of its own and name them in an HTTPRoute"),
    ("spec.exportTo", "a rule is for everybody in the Service's namespace, and for its own callers in another"),
    ("spec.workloadSelector", "it is for all callers of its namespace"),
    ("tls", "callers of the mesh use mutual TLS wherever there is a proxy, and plaintext elsewhere"),
    ("tunnel", "there is no such proxy"),
    ("proxyProtocol", "there is no such header"),
    ("retryBudget", "use a TrafficPolicy of weir.dev"),
    ("tcp.tcpKeepalive", "connections that are gone are noticed by the kernel's own time"),
    ("tcp.maxConnectionDuration", "bound requests per connection by maxRequestsPerConnection"),
    ("tcp.idleTimeout", "a stream without traffic ends after an hour"),
    ("http.h2UpgradePolicy", "say appProtocol: kubernetes.io/h2c at the Service's port"),
    ("http.useClientProtocol", "it is so, unless the Service's port has an appProtocol"),
    ("http.maxConcurrentStreams", "the server says how many"),
    ("http.http2KeepAlive", "connections that are gone are noticed by the kernel's own time"),
    ("httpCookie.attributes", "such a cookie has a name, a path and a life time"),
    ("localityLbSetting.failoverPriority", "places are regions and zones: use failover or distribute"),
    ("outlierDetection.consecutiveErrors", "use consecutive5xxErrors"),
    ("loadBalancer.zoneAwareLbSetting", "use localityLbSetting"),
    ("loadBalancer.backendUtilization", "LEAST_REQUEST looks at latency and requests under way"),
    ("outlierDetection.failurePercentageThreshold", "use consecutive5xxErrors or consecutiveGatewayErrors"),
    ("outlierDetection.outlierDetectionHttpErrorCodes", "statuses of 5xx count"),
];

/// For a field that Istio has and this build has not: what to do instead.
pub fn unsupported(kind: &str, field: &FieldPath) -> Option<&'static str> {
    let pattern = field.pattern();
    let known = UNSUPPORTED.iter().filter(|_| kind == DESTINATION_RULE);
    known
        .into_iter()
        .find(|(end, _)| pattern == *end || pattern.ends_with(&format!(".{end}")))
        .map(|(_, instead)| *instead)
}

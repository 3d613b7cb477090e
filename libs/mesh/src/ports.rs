//! Port numbers and user ids, as users of Istio know them.

/// Admin interface of the proxy, on loopback only.
pub const ADMIN: u16 = 15000;
/// Where the redirect sends what the pod's applications send out.
pub const OUTBOUND: u16 = 15001;
/// Where the redirect sends what comes into the pod.
pub const INBOUND: u16 = 15006;
/// Port that no one listens on: a connection that the proxy's own user makes to it on the pod's own address must arrive at
/// [`INBOUND`], like every call of a pod to itself through the proxy.
pub const CHECK_INBOUND: u16 = 15008;
/// Port that no one listens on: a connection that the proxy's own user makes to it on the pod's own address must arrive at
/// [`OUTBOUND`], which proves that the output rules are in force.
pub const CHECK_OUTBOUND: u16 = 15009;
/// The control plane's xDS and certificate service.
pub const CONTROL: u16 = 15012;
/// Merged metrics of proxy and application, and the application's rewritten probes.
pub const MERGED: u16 = 15020;
/// Readiness of the proxy.
pub const READINESS: u16 = 15021;
/// DNS proxy.
pub const DNS: u16 = 15053;
/// The proxy's own metrics.
pub const METRICS: u16 = 15090;

/// Inbound ports of the proxy itself, never redirected.
pub const NEVER_REDIRECTED: [u16; 4] = [MERGED, READINESS, DNS, METRICS];
/// Ports of the proxy that an application can not serve on.
pub const RESERVED: [u16; 10] =
    [ADMIN, OUTBOUND, INBOUND, CHECK_INBOUND, CHECK_OUTBOUND, CONTROL, MERGED, READINESS, DNS, METRICS];

/// User id of the proxy. Its traffic is not redirected to itself.
pub const PROXY_UID: u32 = 1337;
/// Group id of the proxy. It gives no exemption: the redirect looks at the user id alone.
pub const PROXY_GID: u32 = 1337;

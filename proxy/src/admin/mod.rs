//! The HTTP endpoints for people, Prometheus and the kubelet.

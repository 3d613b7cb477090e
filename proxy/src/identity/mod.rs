//! How the pod gets its certificate and keeps it fresh.

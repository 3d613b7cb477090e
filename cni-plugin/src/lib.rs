//! The chained CNI plugin.

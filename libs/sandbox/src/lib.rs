//! Pods as network namespaces of one machine.

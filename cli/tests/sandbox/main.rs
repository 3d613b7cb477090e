//! Whole sandboxes: real namespaces, real processes, the real command line. They need root.

#![allow(clippy::unwrap_used)] // a test that can not go on should end here

mod bad;
mod cluster;
mod demo;
mod faults;
mod mesh;
mod pipes;
mod pods;
mod support;

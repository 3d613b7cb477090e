//! Whole sandboxes: real namespaces, real processes, the real command line. They need root, those of an ordinary user too: it is made by root.

#![allow(clippy::unwrap_used)] // a test that can not go on should end here

mod bad;
mod cluster;
mod demo;
mod dual;
mod faults;
mod inspect;
mod mesh;
mod pipes;
mod pods;
mod rootless;
mod support;
mod udp;
mod user;

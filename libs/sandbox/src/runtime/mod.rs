//! Containers as processes of this machine.
//!
//! Three processes make one container, all of them this executable until the last step:
//! the supervisor starts [`init`] as first process of a new process namespace, inside the pod's network namespace; it builds the
//! container's file system in a mount namespace of its own ([`mounts`]), and starts [`process`], which gives up privileges and
//! becomes the program. `init` stays to pass signals on and to reap; when it ends, the kernel ends all that is left in the
//! container.

pub mod caps;
pub mod container;
pub mod init;
pub mod logs;
pub mod mounts;
pub mod prctl;
pub mod process;
pub mod spec;
pub mod volumes;

//! A kernel without nf_tables, as a program sees it: the calls that would reach it fail as there.
#![allow(unsafe_code)] // a seccomp filter is set between fork and exec, which no safe wrapper does

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::libc::{
    self, AF_NETLINK, BPF_ABS, BPF_JEQ, BPF_JMP, BPF_JUMP, BPF_K, BPF_LD, BPF_RET, BPF_STMT, BPF_W, EPROTONOSUPPORT,
    NETLINK_NETFILTER, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SYS_socket, sock_filter, sock_fprog,
};

/// Offsets in `struct seccomp_data`: the call's number, and the low halves of its first and third argument.
const NUMBER: u32 = 0;
const DOMAIN: u32 = 16;
const PROTOCOL: u32 = 32;

/// Sockets to netfilter fail in the command and in all that it starts.
pub fn without_nf_tables(command: &mut Command) -> &mut Command {
    let load = |offset| unsafe { BPF_STMT((BPF_LD | BPF_W | BPF_ABS) as u16, offset) };
    let unless = |value: u32, skip| unsafe { BPF_JUMP((BPF_JMP | BPF_JEQ | BPF_K) as u16, value, 0, skip) };
    let end = |verdict| unsafe { BPF_STMT((BPF_RET | BPF_K) as u16, verdict) };
    let mut filter: Vec<sock_filter> = vec![
        load(NUMBER),
        unless(SYS_socket as u32, 5),
        load(DOMAIN),
        unless(AF_NETLINK as u32, 3),
        load(PROTOCOL),
        unless(NETLINK_NETFILTER as u32, 1),
        end(SECCOMP_RET_ERRNO | EPROTONOSUPPORT as u32),
        end(SECCOMP_RET_ALLOW),
    ];
    let set = move || {
        let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: `program` and the filter that it points to outlive the calls, which only read them.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: two system calls on memory that was made before the fork.
    unsafe { command.pre_exec(set) }
}

//! Why the redirect could not be made, read or proven: each message says the cause and what to do.

use std::{fmt, io, path::PathBuf};

use nix::errno::Errno;

use crate::backend::By;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `EPERM`
    #[error(
        "no permission to change network rules: run as root, or give the container the capability NET_ADMIN, for iptables' \
         legacy variant NET_RAW too (in the pod's own network namespace)"
    )]
    Permission,
    /// The kernel was built without nfnetlink.
    #[error(
        "this kernel has no netfilter netlink: build it with CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES (4.18 or later)"
    )]
    NoNetfilter,
    /// A module of nf_tables is missing.
    #[error(
        "the kernel does not know what {step} needs ({}): load the modules nf_tables, nft_chain_nat, nft_ct and \
         nft_redir on the node (modprobe), or build the kernel with CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_CT \
         and CONFIG_NFT_REDIR",
        Cause(*errno, text.as_deref())
    )]
    Unsupported {
        /// What was being done.
        step: String,
        /// The kernel's error.
        errno: Errno,
        /// The kernel's explanation, where it gives one.
        text: Option<String>,
    },
    /// Any other refusal.
    #[error("the kernel refused {step}: {}; nothing was changed", Cause(*errno, text.as_deref()))]
    Refused {
        /// What was being done.
        step: String,
        /// The kernel's error.
        errno: Errno,
        /// The kernel's explanation, where it gives one.
        text: Option<String>,
    },
    /// The programs of iptables are not here.
    #[error(
        "the programs of iptables are not here (iptables-nft-restore and -save or iptables-legacy-restore and -save, and those of \
         ip6tables; looked for in PATH and the usual folders): install the package iptables, or use an image that has it; or \
         use --backend nft where the kernel has nf_tables"
    )]
    NoIptables,
    /// The programs of iptables are not here, and rules of ours are that only they can read or take away.
    #[error(
        "Weir's rules are in force here by iptables, and the programs of iptables are not here, without which they can neither be read \
         nor taken away: install the package iptables, use an image that has it, or end this pod"
    )]
    NoIptablesForOurs,
    /// A program of iptables failed.
    #[error(
        "iptables' rules can not be read or changed: {program}: {text}; see that its modules are loaded on the node"
    )]
    Iptables {
        /// Which.
        program: String,
        /// What it said.
        text: String,
    },
    /// Neither variant took the rules.
    #[error(
        "iptables does not take the rules, and nothing was changed: {}; load the modules of the variant that the node uses: ip_tables \
         and ip6_tables with iptable_nat, iptable_mangle, iptable_raw (and ip6table_…), or nf_tables with nft_compat; and \
         xt_owner, xt_REDIRECT, xt_conntrack, xt_comment, xt_CT. The legacy variant also needs the capability NET_RAW",
        .0.join("; ")
    )]
    IptablesRefused(Vec<String>),
    /// What was changed before a failure could not be changed back.
    #[error(
        "{first}; and what was changed before could not be changed back ({second}): rules are in force in part; end this pod, or run \
         `weir-init clean`"
    )]
    NotRolledBack {
        /// Why the rules were not taken.
        first: Box<Error>,
        /// Why those before did not come back.
        second: Box<Error>,
    },
    /// The rules are in force, and so are older ones.
    #[error(
        "the rules are in force by {by}, but what another back end left can not be taken away: {source}; end this pod, or run \
         `weir-init clean` and apply again"
    )]
    LeftBehind {
        /// The way of the new rules.
        by: By,
        /// Why the older ones stay.
        source: Box<Error>,
    },
    /// iptables has no words for a rule.
    #[error("iptables can not express {0}: use --backend nft, or settings without it")]
    Inexpressible(String),
    /// Neither netlink nor iptables.
    #[error("{first}; and by iptables: {second}")]
    NoBackend {
        /// Why not by netlink.
        first: Box<Error>,
        /// Why not by iptables.
        second: Box<Error>,
    },
    /// Another call is at work in the namespace, and does not end.
    #[error(
        "the network namespace can not be locked: {0}; another program changes its rules, or holds a lock on it (/proc/locks)"
    )]
    Lock(#[source] io::Error),
    /// The conversation with the kernel failed.
    #[error("netlink: {0}; see the kernel's log (dmesg)")]
    Netlink(#[source] io::Error),
    /// The namespace's file can not be opened.
    #[error("network namespace {}: {source}; the pod's sandbox is gone or the path is wrong", path.display())]
    NamespaceGone {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no network namespace, or may not be entered.
    #[error("network namespace {}: {}", path.display(), namespace_advice(*errno))]
    NamespaceEntry {
        /// As given.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// No network namespace could be made.
    #[error("no network namespace could be made ({0}): run as root (CAP_SYS_ADMIN), and see user.max_net_namespaces")]
    NewNamespace(Errno),
    /// No thread could be started.
    #[error("no thread could be started: {0}; the machine or the container is out of processes or memory")]
    Thread(#[source] io::Error),
    /// The rules that are in force are not those that should be.
    #[error("the redirect is not in force as it should be: {0}; run `weir-init apply`, or restart the pod")]
    Differs(String),
    /// Real connections did not go where they should: one line for each.
    #[error("the redirect does not work\n{}", .0.join("\n"))]
    Check(Vec<String>),
}

fn namespace_advice(errno: Errno) -> String {
    match errno {
        Errno::EPERM => "no permission to enter it: run as root (CAP_SYS_ADMIN)".into(),
        Errno::EINVAL => "the file is no network namespace: the pod's sandbox is gone or the path is wrong".into(),
        other => other.desc().into(),
    }
}

/// The kernel's error and, where it gives one, its explanation.
struct Cause<'a>(Errno, Option<&'a str>);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match self.1 {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}

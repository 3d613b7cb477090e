//! The back ends: every test of behaviour runs with each of them.

use weir_init::{Backend, Variant};

use super::Netns;

pub const NETLINK: Backend = Backend::Nft;
pub const IPTABLES_NFT: Backend = Backend::Iptables(Some(Variant::Nft));
pub const IPTABLES_LEGACY: Backend = Backend::Iptables(Some(Variant::Legacy));
pub const ALL: [Backend; 3] = [NETLINK, IPTABLES_NFT, IPTABLES_LEGACY];

/// One test for each back end of each function that takes one. A function that is forgotten here is one that nobody uses.
#[macro_export]
macro_rules! with_each_backend {
    ($($test:ident),* $(,)?) => {
        mod netlink { $(#[test] fn $test() { super::$test($crate::support::by::NETLINK); })* }
        mod iptables_nft { $(#[test] fn $test() { super::$test($crate::support::by::IPTABLES_NFT); })* }
        mod iptables_legacy { $(#[test] fn $test() { super::$test($crate::support::by::IPTABLES_LEGACY); })* }
    };
}

fn program(by: Backend, v4: bool) -> Option<String> {
    let family = if v4 { "iptables" } else { "ip6tables" };
    match by {
        Backend::Iptables(Some(variant)) => Some(format!("{family}-{variant}")),
        _ => None,
    }
}

fn table(chain: &str) -> &'static str {
    match chain {
        "dns_in" | "dns_out" => "raw",
        "invalid_in" | "invalid_out" | "udp_out" => "mangle",
        _ => "nat",
    }
}

/// Empties one of our chains, as somebody else would.
pub fn flush(netns: &Netns, by: Backend, v4: bool, chain: &str) {
    change(netns, by, v4, chain, &["flush", "chain"], "-F", &[], &[]);
}

/// Appends a rule to one of our chains: one that counts, and does nothing.
pub fn append(netns: &Netns, by: Backend, v4: bool, chain: &str) {
    change(netns, by, v4, chain, &["add", "rule"], "-A", &["counter"], &["-p", "tcp"]);
}

/// Puts a rule before all others of one of our chains: one that lets everything pass.
pub fn insert(netns: &Netns, by: Backend, v4: bool, chain: &str) {
    change(netns, by, v4, chain, &["insert", "rule"], "-I", &["accept"], &["-j", "ACCEPT"]);
}

#[allow(clippy::too_many_arguments)]
fn change(
    netns: &Netns,
    by: Backend,
    v4: bool,
    chain: &str,
    nft: &[&str],
    option: &str,
    nft_rule: &[&str],
    rule: &[&str],
) {
    match program(by, v4) {
        None => netns.exec("nft", &[nft, &[if v4 { "ip" } else { "ip6" }, "weir", chain], nft_rule].concat()),
        Some(program) => {
            let chain = format!("WEIR_{}", chain.to_uppercase());
            netns.exec(&program, &[&["-t", table(&chain.to_lowercase()[5..]), option, &chain], rule].concat())
        }
    };
}

/// Takes the rules of one family out of force, as somebody else would.
pub fn unhook(netns: &Netns, by: Backend, v4: bool) {
    match program(by, v4) {
        None => drop(netns.exec("nft", &["delete", "table", if v4 { "ip" } else { "ip6" }, "weir"])),
        Some(program) => {
            for chain in ["PREROUTING", "OUTPUT"] {
                netns.exec(&program, &["-t", "nat", "-F", chain]);
            }
        }
    }
}

/// All rules of the namespace, chains and policies, by every interface, without what the kernel counts. Tables of iptables are
/// told as iptables tells them: which of its own empty chains it makes by the way is its own affair.
pub fn everything(netns: &Netns) -> String {
    let listed = netns.exec("nft", &["-s", "list", "ruleset"]);
    let of_iptables = |table: &str| {
        let name = table.split(' ').nth(2).unwrap_or_default();
        !table.starts_with("table inet") && ["raw", "mangle", "nat", "filter"].contains(&name)
    };
    let mut text: String = listed.split_inclusive("\n}\n").filter(|table| !of_iptables(table)).collect();
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"] {
        let saved = netns.exec(&format!("{program}-save"), &[]);
        let telling = |line: &&str| !line.starts_with('#') && !line.contains(" ACCEPT [");
        let lines = saved.lines().filter(telling).map(|line| line.split(" [").next().unwrap_or_default());
        text.extend(lines.filter(|line| line.contains(' ')).map(|line| format!("{program}: {line}\n")));
    }
    text
}

/// Which back ends have rules of ours in the namespace.
pub fn ours(netns: &Netns) -> Vec<Backend> {
    let all = everything(netns);
    let has = |by: &Backend| match program(*by, true) {
        None => all.contains("table ip weir {"),
        Some(program) => all.lines().any(|line| line.starts_with(&format!("{program}: :WEIR_"))),
    };
    ALL.into_iter().filter(has).collect()
}

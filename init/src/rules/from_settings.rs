//! What a pod's capture settings mean in chains and rules.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weir_mesh::{
    CaptureSettings,
    names::{APP_SOURCE_V4, APP_SOURCE_V6},
    ports,
};

use super::{Action, Base, Chain, Family, Hook, Kind, Match, PROXY_DNS_ZONE, Priority, Protocol, Rule, Side, Table};

/// Chain that decides about what comes into the pod; the pod's calls to itself through the proxy end there too.
const INBOUND_CHAIN: &str = "inbound";
/// Port of DNS.
const DNS_PORT: u16 = 53;

/// The rules of one family.
pub(super) fn table(settings: &CaptureSettings, family: Family) -> Table {
    View::new(settings, family).table()
}

/// Name servers whose queries are captured: not those that the settings exclude, nor those on the pod's own loopback, which
/// the proxy could not ask without asking itself.
fn captured_name_servers(settings: &CaptureSettings) -> Vec<IpAddr> {
    if settings.exclude_outbound_ports.contains(&DNS_PORT) {
        return Vec::new();
    }
    let excluded = |ip: &IpAddr| settings.exclude_outbound_cidrs.iter().any(|net| net.contains(ip));
    let mut servers: Vec<IpAddr> = Vec::new();
    for ip in settings.dns_servers.iter().copied() {
        if !ip.is_loopback() && !ip.is_unspecified() && !excluded(&ip) && !servers.contains(&ip) {
            servers.push(ip);
        }
    }
    servers
}

/// The settings as one family sees them.
struct View<'a> {
    settings: &'a CaptureSettings,
    family: Family,
    name_servers: Vec<IpAddr>,
}

impl<'a> View<'a> {
    fn new(settings: &'a CaptureSettings, family: Family) -> Self {
        let name_servers = captured_name_servers(settings).into_iter().filter(|ip| family.has(*ip)).collect();
        Self { settings, family, name_servers }
    }

    fn table(&self) -> Table {
        let mut chains = vec![self.inbound(), self.prerouting(), self.output(), self.invalid(Hook::Prerouting)];
        chains.push(self.invalid(Hook::Output));
        if self.settings.block_udp {
            chains.push(self.udp());
        }
        if !self.name_servers.is_empty() {
            chains.push(self.zones(Hook::Prerouting));
            chains.push(self.zones(Hook::Output));
        }
        Table { family: self.family, chains }
    }

    fn inbound(&self) -> Chain {
        let own = ports::NEVER_REDIRECTED.into_iter().map(|port| tcp_port(port, Action::Return, "port of the proxy"));
        let excluded = distinct(&self.settings.exclude_inbound_ports)
            .filter(|port| !ports::NEVER_REDIRECTED.contains(port))
            .map(|port| tcp_port(port, Action::Return, "excluded inbound port"));
        let rest = rule([Match::Protocol(Protocol::Tcp)], Action::Redirect(ports::INBOUND), "into the pod");
        Chain { name: INBOUND_CHAIN.into(), base: None, rules: own.chain(excluded).chain([rest]).collect() }
    }

    fn prerouting(&self) -> Chain {
        let mut rules = self.skipped_interfaces(Hook::Prerouting);
        rules.push(rule([Match::Protocol(Protocol::Tcp)], Action::Goto(INBOUND_CHAIN.into()), "all that comes in"));
        base("prerouting", Kind::Nat, Hook::Prerouting, Priority::Dstnat, rules)
    }

    /// The order is the design: each rule may rely on those before it.
    fn output(&self) -> Chain {
        let proxy = Match::User(ports::PROXY_UID);
        let mut rules = vec![
            rule(
                [Match::Address(Side::Source, self.family.app_source())],
                Action::Return,
                "the proxy's call to its application",
            ),
            // Only towards the pod itself, so that no peer's port is ever shadowed.
            rule(
                [
                    proxy.clone(),
                    Match::OutLoopback,
                    Match::Port(Protocol::Tcp, Side::Destination, ports::CHECK_OUTBOUND),
                ],
                Action::Redirect(ports::OUTBOUND),
                "the proxy checks the way out",
            ),
            rule(
                [
                    proxy.clone(),
                    Match::OutLoopback,
                    Match::NotAddress(Side::Destination, self.family.loopback()),
                    Match::Protocol(Protocol::Tcp),
                ],
                Action::Goto(INBOUND_CHAIN.into()),
                "the proxy calls its own pod",
            ),
            // By user alone: an application may run with the proxy's group and must not escape by that.
            rule([proxy], Action::Return, "the proxy calls others"),
            rule([Match::OutLoopback], Action::Return, "within the pod"),
        ];
        rules.extend(self.skipped_interfaces(Hook::Output));
        rules.extend(self.excluded(Protocol::Tcp));
        for server in &self.name_servers {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                let to = Match::Address(Side::Destination, IpNet::from(*server));
                rules.push(rule(
                    [to, Match::Port(protocol, Side::Destination, DNS_PORT)],
                    Action::Redirect(ports::DNS),
                    "query to the pod's name server",
                ));
            }
        }
        rules.extend(self.captured(Protocol::Tcp, &Action::Redirect(ports::OUTBOUND), "out of the pod"));
        base("output", Kind::Nat, Hook::Output, Priority::Dstnat, rules)
    }

    /// What is excluded passes as it is.
    fn excluded(&self, protocol: Protocol) -> Vec<Rule> {
        let ports = distinct(&self.settings.exclude_outbound_ports).map(|port| {
            let port = Match::Port(protocol, Side::Destination, port);
            rule([port], Action::Return, "excluded outbound port")
        });
        let networks = self
            .networks(&self.settings.exclude_outbound_cidrs)
            .map(|net| rule([Match::Address(Side::Destination, net)], Action::Return, "excluded destination"));
        ports.chain(networks).collect()
    }

    /// What happens to all that is not excluded, or to what is included.
    fn captured(&self, protocol: Protocol, action: &Action, comment: &'static str) -> Vec<Rule> {
        if self.settings.include_outbound_cidrs.is_empty() {
            return vec![rule([Match::Protocol(protocol)], action.clone(), comment)];
        }
        let networks = self.networks(&self.settings.include_outbound_cidrs);
        networks
            .map(|net| {
                let matches = [Match::Address(Side::Destination, net), Match::Protocol(protocol)];
                rule(matches, action.clone(), "included destination")
            })
            .collect()
    }

    /// No UDP goes where TCP would be captured: the proxy can not carry it, so it would pass by the mesh (QUIC, HTTP/3). Before
    /// translation, where a query still has its name server's address. Answers are dropped as well: a server of QUIC in the pod
    /// would be outside of the mesh too.
    fn udp(&self) -> Chain {
        let mut rules = vec![
            rule([Match::User(ports::PROXY_UID)], Action::Return, "the proxy calls others"),
            rule([Match::OutLoopback], Action::Return, "within the pod"),
        ];
        rules.extend(self.skipped_interfaces(Hook::Output));
        rules.extend(self.excluded(Protocol::Udp));
        let dns = || Match::Port(Protocol::Udp, Side::Destination, DNS_PORT);
        let known: Vec<IpAddr> = self.settings.dns_servers.iter().chain(&self.settings.name_servers).copied().collect();
        if known.is_empty() {
            rules.push(rule([dns()], Action::Return, "query to a name server"));
        }
        rules.extend(distinct(&known).filter(|server| self.family.has(*server)).map(|server| {
            let to = Match::Address(Side::Destination, IpNet::from(server));
            rule([to, dns()], Action::Return, "query to the pod's name server")
        }));
        rules.extend(self.captured(Protocol::Udp, &Action::Drop, "can not go through the proxy"));
        base("udp_out", Kind::Filter, Hook::Output, Priority::Mangle, rules)
    }

    /// A packet without a connection can not be translated back: it would reach the peer (or the application) from the wrong
    /// port, and be answered with a reset that kills a healthy connection.
    fn invalid(&self, hook: Hook) -> Chain {
        let mut rules = self.skipped_interfaces(hook);
        rules.push(rule([Match::Protocol(Protocol::Tcp), Match::Invalid], Action::Drop, "can not be translated"));
        let name = if hook == Hook::Prerouting { "invalid_in" } else { "invalid_out" };
        base(name, Kind::Filter, hook, Priority::Mangle, rules)
    }

    /// The proxy's own queries are tracked apart: with a source port that an application's query used just before, they would
    /// else belong to that query's translated connection and come back to the proxy itself.
    ///
    /// UDP alone. A TCP packet may be sent when its socket has no user any more (the last FIN of a closed socket), so a zone
    /// chosen by user would change in mid-connection; and it needs none, as two TCP sockets never share both ends, and
    /// conntrack gives up a closed connection at the next SYN.
    fn zones(&self, hook: Hook) -> Chain {
        let mut rules = self.skipped_interfaces(hook);
        rules.extend(self.name_servers.iter().map(|server| {
            let net = IpNet::from(*server);
            let zone = Action::Zone(PROXY_DNS_ZONE);
            match hook {
                Hook::Output => rule(
                    [
                        Match::User(ports::PROXY_UID),
                        Match::Address(Side::Destination, net),
                        Match::Port(Protocol::Udp, Side::Destination, DNS_PORT),
                    ],
                    zone,
                    "the proxy's own query",
                ),
                Hook::Prerouting => rule(
                    [Match::Address(Side::Source, net), Match::Port(Protocol::Udp, Side::Source, DNS_PORT)],
                    zone,
                    "answer to the proxy's own query",
                ),
            }
        }));
        let name = if hook == Hook::Prerouting { "dns_in" } else { "dns_out" };
        base(name, Kind::Filter, hook, Priority::Raw, rules)
    }

    fn skipped_interfaces(&self, hook: Hook) -> Vec<Rule> {
        distinct(&self.settings.skip_interfaces)
            .map(|name| {
                let interface = match hook {
                    Hook::Prerouting => Match::InInterface(name),
                    Hook::Output => Match::OutInterface(name),
                };
                rule([interface], Action::Return, "skipped interface")
            })
            .collect()
    }

    fn networks(&self, nets: &[IpNet]) -> impl Iterator<Item = IpNet> + use<> {
        let truncated: Vec<IpNet> = nets.iter().filter(|net| self.family.has(net.addr())).map(IpNet::trunc).collect();
        distinct(&truncated)
    }
}

impl Family {
    fn app_source(self) -> IpNet {
        IpNet::from(match self {
            Self::V4 => IpAddr::V4(APP_SOURCE_V4),
            Self::V6 => IpAddr::V6(APP_SOURCE_V6),
        })
    }

    fn loopback(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8)),
            Self::V6 => IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)),
        }
    }
}

fn rule(matches: impl Into<Vec<Match>>, action: Action, comment: &'static str) -> Rule {
    Rule { matches: matches.into(), action, comment: comment.into() }
}

fn tcp_port(port: u16, action: Action, comment: &'static str) -> Rule {
    rule([Match::Port(Protocol::Tcp, Side::Destination, port)], action, comment)
}

fn base(name: &'static str, kind: Kind, hook: Hook, priority: Priority, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), base: Some(Base { kind, hook, priority }), rules }
}

/// Each value once, in the order given.
fn distinct<T: Clone + PartialEq>(values: &[T]) -> impl Iterator<Item = T> + use<T> {
    let mut seen: Vec<T> = Vec::with_capacity(values.len());
    for value in values {
        if !seen.contains(value) {
            seen.push(value.clone());
        }
    }
    seen.into_iter()
}

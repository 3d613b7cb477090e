//! Access rules, by two evaluators.
//!
//! Policies made of the input go the whole way: parsed, translated to Envoy's filters, decoded by the proxy, asked about
//! connections. A second evaluator, written from Istio's documentation and knowing none of that code, says what each answer must
//! be. The two agree on every connection, or somebody gets in whom nobody meant.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value, json};
use weir_config::{
    manifest::{Source, parse_value_stored},
    model::Name,
};
use weir_control::{
    source::Item,
    translate::{Key, Mesh, resource},
    world::World,
};
use weir_mesh::Identity;
use weir_proxy::{
    config::{Store, Tables},
    policy::Facts,
};
use weir_xds::{Handler, Kind, names};

use crate::{Shape, Target, none};

pub(super) const ACCESS: Target = Target {
    name: "access_rules",
    holds: "policies, once parsed, translated and decoded, let in exactly whom a second evaluator lets in",
    max_len: 512,
    words: &[&[b"\0", b"\x01", b"\xff", b"\0\0\0\0", b"\x7f\x80"]],
    seeds: none,
    run: access,
};

/// Values of a field: what can be written, and whether it can be accepted.
type Pool = &'static [(&'static str, bool)];

const PRINCIPALS: Pool = &[
    ("cluster.local/ns/shop/sa/cart", true),
    ("corp.example/ns/shop/sa/cart", true),
    ("cluster.local/ns/other/sa/a.b", true),
    ("cluster.local/ns/shop/*", true),
    ("cluster.local/*", true),
    ("corp.example/ns/sh*", true),
    ("cluster.l*", true),
    ("*/sa/cart", true),
    ("*cart", true),
    ("*/ns/other/sa/a.b", true),
    ("*", true),
    ("spiffe://cluster.local/ns/shop/sa/cart", false),
    ("cluster.local/ns/*/sa/cart", false),
    ("cluster.local/ns/shop", false),
    ("**", false),
    ("", false),
];
const NAMESPACES: Pool = &[
    ("shop", true),
    ("other", true),
    ("sh*", true),
    ("*op", true),
    ("*", true),
    ("sh.op", false),
    ("s*p", false),
    ("", false),
];
const ACCOUNTS: Pool =
    &[("cart", true), ("shop/cart", true), ("other/a.b", true), ("other/axb", true), ("ca*", false), ("a/b/c", false)];
const BLOCKS: Pool = &[
    ("10.1.2.3", true),
    ("10.0.0.0/8", true),
    ("10.1.2.3/8", true),
    ("0.0.0.0/0", true),
    ("fd00::1", true),
    ("fd00::/8", true),
    ("::/0", true),
    ("198.18.0.0/24", true),
    ("::ffff:10.0.0.0/104", false),
    ("10.0.0.0/33", false),
    ("10.1", false),
];
const PORTS: Pool =
    &[("80", true), ("8080", true), ("9000", true), ("0", false), ("+80", false), ("080", false), ("65536", false)];

/// A field: its name, its negation, its values.
type Field = (&'static str, &'static str, Pool);
const SOURCE: [Field; 4] = [
    ("principals", "notPrincipals", PRINCIPALS),
    ("namespaces", "notNamespaces", NAMESPACES),
    ("serviceAccounts", "notServiceAccounts", ACCOUNTS),
    ("ipBlocks", "notIpBlocks", BLOCKS),
];
const OPERATION: [Field; 1] = [("ports", "notPorts", PORTS)];
const WHEN: [(&str, &str, Pool); 6] = [
    ("source.principal", "principals", PRINCIPALS),
    ("source.namespace", "namespaces", NAMESPACES),
    ("source.serviceAccount", "serviceAccounts", ACCOUNTS),
    ("source.ip", "ipBlocks", BLOCKS),
    ("destination.ip", "to", BLOCKS),
    ("destination.port", "ports", PORTS),
];
/// What Istio has besides and is enforced on requests, and what nobody has.
const UNKNOWN: [(&str, &str); 4] = [
    ("remoteIpBlocks", "[\"10.0.0.0/8\"]"),
    ("requestPrincipals", "[\"*\"]"),
    ("hosts", "[\"a\"]"),
    ("prinzipals", "[\"*\"]"),
];

const IDENTITIES: [Option<&str>; 7] = [
    None,
    Some("spiffe://cluster.local/ns/shop/sa/cart"),
    Some("spiffe://corp.example/ns/shop/sa/cart"),
    Some("spiffe://corp.example/ns/other/sa/a.b"),
    Some("spiffe://cluster.local/ns/other/sa/axb"),
    Some("spiffe://cluster.local.evil/ns/shop/sa/cart"),
    Some("spiffe://corp.example/ns/shop-test/sa/cart"),
];
const CALLERS: [&str; 5] = ["10.1.2.3", "10.9.9.9", "192.0.2.1", "fd00::1", "::ffff:10.1.2.3"];
const CALLED: [&str; 4] = ["198.18.0.1:80", "198.18.0.1:8080", "[fd00::7]:9000", "[::ffff:198.18.0.1]:80"];

/// A test of one value, by kind of field.
#[derive(Debug)]
struct Term {
    of: &'static str,
    any: Option<Vec<&'static str>>,
    none: Option<Vec<&'static str>>,
}

/// One rule: sources, operations, conditions.
type Rule = (Vec<Vec<Term>>, Vec<Vec<Term>>, Vec<Term>);

/// What a policy means.
#[derive(Debug)]
struct Policy {
    namespace: &'static str,
    selected: bool,
    deny: bool,
    /// `None`: it can not be accepted.
    rules: Option<Vec<Rule>>,
}

/// How strict a rule about plaintext is; `None` leaves it to the next wider one.
type Mode = Option<bool>;

/// Gathers whether what is made can be accepted.
struct Maker<'a, 'b> {
    source: &'a mut Unstructured<'b>,
    fine: bool,
}

impl Maker<'_, '_> {
    /// Once in a while what no policy should have.
    fn rarely(&mut self) -> Result<bool> {
        self.source.ratio(1, 40)
    }

    fn values(&mut self, pool: Pool) -> Result<(Value, Vec<&'static str>)> {
        let mut chosen = Vec::new();
        for _ in 0..self.source.int_in_range(1..=3)? {
            let (text, fine) = *self.source.choose(pool)?;
            // Mostly what can be accepted: a policy that is refused says little.
            if fine || self.rarely()? {
                self.fine &= fine;
                chosen.push(text);
            }
        }
        self.fine &= !chosen.is_empty(); // an empty list is refused
        Ok((json!(chosen), chosen))
    }

    fn fields(&mut self, fields: &[Field]) -> Result<(Value, Vec<Term>)> {
        let (mut object, mut terms) = (Map::new(), Vec::new());
        for (name, not, pool) in fields {
            let mut term = Term { of: name, any: None, none: None };
            if self.source.ratio(2, 5)? {
                let (value, chosen) = self.values(pool)?;
                object.insert((*name).to_owned(), value);
                term.any = Some(chosen);
            }
            if self.source.ratio(1, 5)? {
                let (value, chosen) = self.values(pool)?;
                object.insert((*not).to_owned(), value);
                term.none = Some(chosen);
            }
            terms.push(term);
        }
        let has = |name: &str| object.contains_key(name);
        if (has("serviceAccounts") || has("notServiceAccounts"))
            && ["principals", "notPrincipals", "namespaces", "notNamespaces"].into_iter().any(has)
        {
            self.fine = false;
        }
        self.fine &= !object.is_empty();
        if self.rarely()? {
            let (name, value) = *self.source.choose(&UNKNOWN)?;
            object.insert(name.to_owned(), serde_json::from_str(value).unwrap_or_default());
            self.fine = false;
        }
        Ok((Value::Object(object), terms))
    }

    fn rule(&mut self) -> Result<(Value, Rule)> {
        let mut object = Map::new();
        let mut rule: Rule = (Vec::new(), Vec::new(), Vec::new());
        for (list, inner) in [("from", "source"), ("to", "operation")] {
            if !self.source.ratio(3, 5)? {
                continue;
            }
            let mut entries = Vec::new();
            for _ in 0..self.source.int_in_range(1..=2)? {
                let (value, terms) = self.fields(if list == "from" { &SOURCE } else { &OPERATION })?;
                entries.push(json!({ inner: value }));
                if list == "from" { &mut rule.0 } else { &mut rule.1 }.push(terms);
            }
            if self.rarely()? {
                entries.clear(); // an empty list is refused
                self.fine = false;
            }
            object.insert(list.to_owned(), Value::Array(entries));
        }
        if self.source.ratio(2, 5)? {
            let mut entries = Vec::new();
            for _ in 0..self.source.int_in_range(1..=2)? {
                let (key, of, pool) = *self.source.choose(&WHEN)?;
                let mut term = Term { of, any: None, none: None };
                let mut entry = Map::from_iter([("key".to_owned(), json!(key))]);
                let which = self.source.int_in_range(1..=3)?;
                if which & 1 != 0 {
                    let (value, chosen) = self.values(pool)?;
                    entry.insert("values".into(), value);
                    term.any = Some(chosen);
                }
                if which & 2 != 0 {
                    let (value, chosen) = self.values(pool)?;
                    entry.insert("notValues".into(), value);
                    term.none = Some(chosen);
                }
                if self.rarely()? {
                    entry.insert("key".into(), json!("request.headers[a]"));
                    self.fine = false;
                }
                entries.push(Value::Object(entry));
                rule.2.push(term);
            }
            object.insert("when".into(), Value::Array(entries));
        }
        Ok((Value::Object(object), rule))
    }
}

const PLACES: [&str; 3] = ["shop", "weir-system", "other"];

/// A policy, and what it means for pod `shop/web`.
fn policy(source: &mut Unstructured<'_>, number: usize) -> Result<(Value, Policy)> {
    let namespace = PLACES[source.int_in_range(0..=7)?.min(9) % PLACES.len()];
    let mut maker = Maker { source, fine: true };
    let mut spec = Map::new();
    let mut selected = true;
    match maker.source.int_in_range(0..=5)? {
        0 | 1 => {
            spec.insert("selector".into(), json!({"matchLabels": {"app": "web"}}));
        }
        2 => {
            spec.insert("selector".into(), json!({"matchLabels": {"app": "db"}}));
            selected = false;
        }
        3 => {
            spec.insert("selector".into(), json!({}));
        }
        _ => {}
    }
    let deny = match maker.source.int_in_range(0..=4)? {
        0 | 1 => {
            spec.insert("action".into(), json!("DENY"));
            true
        }
        2 => {
            spec.insert("action".into(), json!("ALLOW"));
            false
        }
        _ => false,
    };
    let mut rules = Vec::new();
    if maker.source.ratio(7, 8)? {
        let mut list = Vec::new();
        for _ in 0..maker.source.int_in_range(0..=3)? {
            let (value, rule) = maker.rule()?;
            list.push(value);
            rules.push(rule);
        }
        spec.insert("rules".into(), Value::Array(list));
    }
    if maker.rarely()? {
        spec.insert("provider".into(), json!({"name": "x"}));
        maker.fine = false;
    }
    let fine = maker.fine;
    let object = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": format!("p{number}"), "namespace": namespace}, "spec": spec});
    Ok((object, Policy { namespace, selected, deny, rules: fine.then_some(rules) }))
}

/// Rules about plaintext, one a level (mesh, namespace, workload): the objects, and what they say.
fn modes(source: &mut Unstructured<'_>) -> Result<(Vec<Value>, [Mode; 3], Option<Mode>)> {
    let mut objects = Vec::new();
    let mut said = [None; 3];
    let mut port = None;
    let one = |source: &mut Unstructured<'_>| -> Result<(Value, Mode)> {
        Ok(match source.int_in_range(0..=2)? {
            0 => (json!({"mode": "STRICT"}), Some(true)),
            1 => (json!({"mode": "PERMISSIVE"}), Some(false)),
            _ => (json!({"mode": "UNSET"}), None),
        })
    };
    for (level, namespace) in ["weir-system", "shop", "shop"].into_iter().enumerate() {
        if !source.ratio(1, 3)? {
            continue;
        }
        let (mtls, mode) = one(source)?;
        let mut spec = json!({"mtls": mtls});
        said[level] = mode;
        if level == 2 {
            spec["selector"] = json!({"matchLabels": {"app": "web"}});
            if source.ratio(1, 2)? {
                let (mtls, mode) = one(source)?;
                spec["portLevelMtls"] = json!({"80": mtls});
                port = Some(mode);
            }
        }
        objects.push(json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": format!("m{level}"), "namespace": namespace}, "spec": spec}));
    }
    Ok((objects, said, port))
}

/// A connection.
struct Connection {
    identity: Option<Identity>,
    from: IpAddr,
    to: SocketAddr,
}

/// `a*`, `*a`, `*` or the whole.
fn text_matches(pattern: &str, text: &str) -> bool {
    if pattern == "*" {
        return !text.is_empty();
    }
    if let Some(end) = pattern.strip_prefix('*') {
        return text.ends_with(end);
    }
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == pattern,
    }
}

/// An address, or a range as address and number of bits, compared bit by bit.
fn in_block(block: &str, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let (text, length) = block.split_once('/').unwrap_or((block, ""));
    let Ok(network) = text.parse::<IpAddr>() else { return false };
    // The same family, whichever way the kernel writes an IPv4 address.
    let address = address.to_canonical();
    if network.is_ipv4() != address.is_ipv4() {
        return false;
    }
    let ((network, all), (address, _)) = (bits(network), bits(address));
    let length = length.parse().unwrap_or(all);
    (0..length).all(|bit| (network ^ address) & (1 << (127 - bit)) == 0)
}

fn test(of: &str, value: &str, own: &str, domain: &str, connection: &Connection) -> bool {
    let Connection { identity, from, to } = connection;
    match of {
        "principals" => identity.as_ref().is_some_and(|identity| {
            let text = identity.uri().trim_start_matches("spiffe://");
            // The default trust domain stands for the mesh's own.
            match value.split_once('/') {
                Some(("cluster.local", rest)) => text_matches(&format!("{domain}/{rest}"), text),
                _ => text_matches(value, text),
            }
        }),
        "namespaces" => identity.as_ref().is_some_and(|identity| text_matches(value, identity.namespace())),
        "serviceAccounts" => identity.as_ref().is_some_and(|identity| {
            let (namespace, account) = value.split_once('/').unwrap_or((own, value));
            identity.namespace() == namespace && identity.service_account() == account
        }),
        "ipBlocks" => in_block(value, *from),
        "to" => in_block(value, to.ip()),
        "ports" => value == to.port().to_string(),
        other => panic!("no field {other}"),
    }
}

impl Policy {
    fn matches(&self, domain: &str, connection: &Connection) -> bool {
        let holds = |value: &&str, of: &str| test(of, value, self.namespace, domain, connection);
        let term = |term: &Term| {
            term.any.as_ref().is_none_or(|any| any.iter().any(|value| holds(value, term.of)))
                && term.none.as_ref().is_none_or(|none| !none.iter().any(|value| holds(value, term.of)))
        };
        let one_of = |lists: &[Vec<Term>]| lists.is_empty() || lists.iter().any(|terms| terms.iter().all(term));
        match &self.rules {
            // Closed: denies everybody, or allows nobody.
            None => self.deny,
            Some(rules) => rules.iter().any(|(from, to, when)| one_of(from) && one_of(to) && when.iter().all(term)),
        }
    }
}

fn expected(policies: &[Policy], modes: &[Mode; 3], port: Option<Mode>, domain: &str, connection: &Connection) -> bool {
    let whole = modes[2].or(modes[1]).or(modes[0]).unwrap_or(false);
    let strict = match port {
        Some(mode) if connection.to.port() == 80 => mode.unwrap_or(whole),
        _ => whole,
    };
    if strict && connection.identity.is_none() {
        return false;
    }
    let ours = || policies.iter().filter(|policy| policy.selected && policy.namespace != "other");
    if ours().filter(|policy| policy.deny).any(|policy| policy.matches(domain, connection)) {
        return false;
    }
    let mut allow = ours().filter(|policy| !policy.deny).peekable();
    allow.peek().is_none() || allow.any(|policy| policy.matches(domain, connection))
}

type Made = (Vec<Value>, Vec<Policy>, [Mode; 3], Option<Mode>, &'static str);

fn made(bytes: &[u8]) -> Result<Made> {
    let mut source = Unstructured::new(bytes);
    let domain = if source.ratio(1, 2)? { "cluster.local" } else { "corp.example" };
    let (mut objects, said, port) = modes(&mut source)?;
    let mut policies = Vec::new();
    for number in 0..source.int_in_range(1..=4)? {
        let (object, policy) = policy(&mut source, number)?;
        objects.push(object);
        policies.push(policy);
    }
    Ok((objects, policies, said, port, domain))
}

fn access(bytes: &[u8]) -> Shape {
    let Ok((objects, policies, modes, port, domain)) = made(bytes) else { return Shape::of("too short") };
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "a", "image": "a", "ports": [{"name": "http", "containerPort": 80}]}]}});
    let mut world = World::default();
    for object in [pod].iter().chain(&objects) {
        let stored = parse_value_stored(object.clone(), Source::named("made"));
        let item = stored.manifests.first().and_then(|manifest| Item::of(&manifest.object));
        let Some(item) = item else { panic!("lost: {object} {:?}", stored.problems) };
        if let Item::AuthorizationPolicy(read) = &item {
            let number: Option<usize> = read.name.name.strip_prefix('p').and_then(|number| number.parse().ok());
            let meant = number.and_then(|number| policies.get(number));
            assert_eq!(
                Some(read.refused.is_empty()),
                meant.map(|meant| meant.rules.is_some()),
                "{object}: {:?}",
                read.refused
            );
        }
        world.apply(item, &mut HashSet::new());
    }
    let Ok(trust_domain) = domain.parse() else { panic!("no trust domain") };
    let mesh = Mesh { trust_domain, cluster_domain: "cluster.local".into() };
    let key = Key::new(Kind::Listener, Arc::from(names::INBOUND), &Name::new("shop", "web"));
    let Some(listener) = resource(&mesh, &world, &key, &Default::default()) else { panic!("no listener for the pod") };
    let store = Arc::new(Store::default());
    let rejected = Tables::new(store.clone()).apply(Kind::Listener, vec![listener], Vec::new());
    assert!(rejected.is_empty(), "{rejected:?}");
    let Some(inbound) = store.inbound() else { panic!("nothing is in force") };
    let mut allowed = Vec::new();
    for identity in IDENTITIES {
        for from in CALLERS {
            for to in CALLED {
                let connection = Connection {
                    identity: identity.and_then(|identity| identity.parse().ok()),
                    from: from.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                    to: to.parse().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 1)),
                };
                let facts = Facts { principal: connection.identity.as_ref(), from: connection.from, to: connection.to };
                let ours = inbound.access(connection.to.port()).judge(&facts);
                let want = expected(&policies, &modes, port, domain, &connection);
                assert_eq!(
                    ours.is_ok(),
                    want,
                    "caller {identity:?} from {from} to {to} in {domain}: {ours:?}\n{}",
                    objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
                );
                allowed.push(want);
            }
        }
    }
    Shape::of((policies.len(), policies.iter().filter(|policy| policy.rules.is_none()).count(), allowed))
}

//! Rules of a Service, as `weir describe` tells them and as a proxy follows them.
//!
//! Routes made of the input go the whole way: parsed, translated to Envoy's resources, decoded by the proxy, asked about requests.
//! What the control plane says of the same world must fit: the same rules in the same order, and none that it calls shadowed is ever
//! the one that a request takes.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use arbitrary::{Result, Unstructured};
use bytes::BytesMut;
use serde_json::{Value, json};
use weir_config::{
    manifest::{Source, parse_value},
    model::Name,
};
use weir_control::{
    describe,
    source::Item,
    translate::{Key, Mesh, resource},
    world::World,
};
use weir_proxy::{
    config::{Answer, Store, Tables},
    http::{Limits, RequestHead, h1::RequestDecoder},
};
use weir_xds::{Handler, Kind, names};

use crate::{Shape, Target, magnitude, none};

pub(super) const SHADOWS: Target = Target {
    name: "shadowed_rules",
    holds: "rules are described in the order in which a proxy tries them, and one that is called shadowed is never taken",
    max_len: 512,
    words: &[&[b"\0", b"\x01", b"\xff", b"\0\0\0\0", b"\x7f\x80"]],
    seeds: none,
    run: shadows,
};

const ADDRESS: &str = "198.19.0.7:80";
const HOST: &str = "catalog.shop.svc.cluster.local:80";

/// Few values, so that rules overlap and requests meet them.
const PATHS: [(&str, &str); 14] = [
    ("PathPrefix", "/"),
    ("PathPrefix", "/a"),
    ("PathPrefix", "/a/"),
    ("PathPrefix", "/a/b"),
    ("PathPrefix", "/ab"),
    ("Exact", "/a"),
    ("Exact", "/a/"),
    ("Exact", "/a/b"),
    ("Exact", "/ab"),
    ("RegularExpression", ".*"),
    ("RegularExpression", "/.*"),
    ("RegularExpression", "/a.*"),
    ("RegularExpression", "/a/[b-c]"),
    ("RegularExpression", "/(a|b).*"),
];
const VALUES: [(&str, &str); 5] = [
    ("Exact", "1"),
    ("Exact", "12"),
    ("RegularExpression", ".*"),
    ("RegularExpression", "1.*"),
    ("RegularExpression", "1?2"),
];
const METHODS: [&str; 2] = ["GET", "POST"];
/// Targets of requests.
const TARGETS: [&str; 9] = ["/", "/a", "/a/", "/a/b", "/a/bc", "/ab", "/abc", "/b", "/%61/b"];
const SENT: [Option<&str>; 4] = [None, Some("1"), Some("12"), Some("2")];
/// Times of making: of two alike the older route counts.
const TIMES: [&str; 2] = ["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"];

fn named(source: &mut Unstructured<'_>, names: &[&str]) -> Result<Value> {
    let mut list = Vec::new();
    for name in names {
        if source.ratio(1, 3)? {
            let (kind, value) = *source.choose(&VALUES)?;
            list.push(json!({"name": name, "type": kind, "value": value}));
        }
    }
    Ok(Value::Array(list))
}

fn matcher(source: &mut Unstructured<'_>) -> Result<Value> {
    let (kind, path) = *source.choose(&PATHS)?;
    let mut matcher = json!({"path": {"type": kind, "value": path}});
    matcher["headers"] = named(source, &["x", "y"])?;
    matcher["queryParams"] = named(source, &["q"])?;
    if source.ratio(1, 4)? {
        matcher["method"] = json!(source.choose(&METHODS)?);
    }
    Ok(matcher)
}

fn route(source: &mut Unstructured<'_>, number: usize) -> Result<Value> {
    let mut rules = Vec::new();
    for _ in 0..source.int_in_range(1..=4)? {
        let mut matches = Vec::new();
        for _ in 0..source.int_in_range(1..=3)? {
            matches.push(matcher(source)?);
        }
        rules.push(json!({ "matches": matches }));
    }
    let time = source.choose(&TIMES)?;
    Ok(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": format!("r{number}"), "namespace": "shop", "creationTimestamp": time},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "catalog"}], "rules": rules}}))
}

fn made(bytes: &[u8]) -> Result<Vec<Value>> {
    let mut source = Unstructured::new(bytes);
    (0..source.int_in_range(1..=3)?).map(|number| route(&mut source, number)).collect()
}

fn requests() -> impl Iterator<Item = RequestHead> {
    let all = TARGETS.iter().flat_map(|target| METHODS.iter().map(move |method| (target, method)));
    let headers = SENT.iter().flat_map(|x| SENT.iter().map(move |y| (x, y)));
    let headers: Vec<_> = headers.flat_map(|(x, y)| SENT.iter().map(move |q| (x, y, q))).collect();
    all.flat_map(move |(target, method)| {
        headers.clone().into_iter().map(move |(x, y, q)| {
            let line = |name: &str, value: &Option<&str>| {
                value.map(|value| format!("{name}: {value}\r\n")).unwrap_or_default()
            };
            let query = q.map(|value| format!("?q={value}")).unwrap_or_default();
            let text =
                format!("{method} {target}{query} HTTP/1.1\r\nhost: catalog\r\n{}{}\r\n", line("x", x), line("y", y));
            let head = RequestDecoder::new().decode(&mut BytesMut::from(text.as_bytes()), &Limits::default());
            match head {
                Ok(Some(head)) => head,
                other => panic!("{text:?}: {other:?}"),
            }
        })
    })
}

fn shadows(bytes: &[u8]) -> Shape {
    let Ok(routes) = made(bytes) else { return Shape::of("too short") };
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "catalog", "namespace": "shop"},
        "spec": {"clusterIP": "198.19.0.7", "clusterIPs": ["198.19.0.7"], "selector": {"app": "catalog"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
    let mut world = World::default();
    for object in std::iter::once(&service).chain(&routes) {
        let manifest = match parse_value(object.clone(), Source::named("made")) {
            Ok(manifest) => manifest,
            Err(problems) => panic!("{object}: {problems:?}"),
        };
        let Some(item) = Item::of(&manifest.object) else { panic!("lost: {object}") };
        world.apply(item, &mut HashSet::new());
    }
    let name = Name::new("shop", "catalog");
    let Some(described) = describe::service(&world, &name, &[]) else { panic!("the Service is not described") };
    let rules = &described.ports[0].callers[0].rules;

    let store = in_force(&world);
    let Ok(address) = ADDRESS.parse() else { panic!("no address") };
    let Some(entry) = store.outbound(address) else { panic!("no entry") };
    let answer = entry.answer();
    let Answer::Known(known) = answer.as_ref() else { panic!("nothing is in force: {answer:?}") };
    let Some(table) = known.routes.as_ref().and_then(|routes| routes.table()) else { panic!("no rules are in force") };
    let told: Vec<String> =
        rules.iter().map(|rule| format!("{}/{}/{}", rule.object, rule.rule, rule.match_index)).collect();
    let tried: Vec<&str> = table.routes().iter().map(|route| route.name()).collect();
    assert_eq!(told, tried, "the order");

    let mut taken = BTreeSet::new();
    for head in requests() {
        let Some(route) = table.find(&head) else { continue };
        let at = tried.iter().position(|name| *name == route.name());
        let Some(rule) = at.and_then(|at| rules.get(at)) else { panic!("{} is not described", route.name()) };
        assert_eq!(rule.shadowed_by, None, "{} takes {head:?}", route.name());
        taken.insert(rule.place);
    }
    let shadowed = rules.iter().filter(|rule| rule.shadowed_by.is_some()).count();
    Shape::of((magnitude(rules.len()), shadowed.min(8), taken.len().min(8)))
}

/// What a proxy has in force once it has heard of the Service.
fn in_force(world: &World) -> Arc<Store> {
    let Ok(trust_domain) = "cluster.local".parse() else { panic!("no trust domain") };
    let mesh = Mesh { trust_domain, cluster_domain: "cluster.local".into() };
    let Ok(address) = ADDRESS.parse::<SocketAddr>() else { panic!("no address") };
    let store = Arc::new(Store::default());
    let _ = store.outbound(address);
    let mut tables = Tables::new(store.clone());
    for (kind, name) in [(Kind::Listener, names::outbound(address)), (Kind::Route, HOST.to_owned())] {
        let key = Key::new(kind, Arc::from(name.as_str()), &Name::new("shop", "client"));
        let Some(resource) = resource(&mesh, world, &key, &Default::default()) else { panic!("there is no {name}") };
        let rejected = tables.apply(kind, vec![resource], Vec::new());
        assert!(rejected.is_empty(), "{rejected:?}");
    }
    store
}

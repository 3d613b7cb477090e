//! Manifests, as text and as objects; and what the control plane and the proxy make of them.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use serde_json::Value;
use weir_config::{
    Object, Problem, frontend,
    manifest::{Source, parse_stored, parse_value, parse_value_stored},
    model::{AccessAction, Addressing, MtlsMode, Name, Selection, in_precedence},
};
use weir_control::{
    source::Item,
    translate::{self, Key, Mesh, View, resource},
    world::World,
};
use weir_proxy::config::{Store, Tables};
use weir_xds::{Handler, Kind, Resource, Subscriptions, names};

use super::{JSON, text};
use crate::{Shape, Target, magnitude};

const WORDS: &[&[u8]] = &[
    b"\n---\n",
    b"\n",
    b"  ",
    b": ",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b", ",
    b"'",
    b"\"",
    b"|\n",
    b">-\n",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!binary ",
    b"null",
    b"true",
    b"~",
    b"-1",
    b"0x10",
    b"1e400",
    b".inf",
    b"apiVersion: v1\n",
    b"kind: Service\n",
    b"kind: List\nitems:\n",
    b"kind: HTTPRoute\n",
    b"kind: Pod\n",
    b"kind: EndpointSlice\n",
    b"kind: AuthorizationPolicy\n",
    b"kind: PeerAuthentication\n",
    b"apiVersion: gateway.networking.k8s.io/v1\n",
    b"apiVersion: security.istio.io/v1\n",
    b"metadata: {name: a, namespace: b}\n",
    b"spec:\n",
    b"rules:\n",
    b"{type: RegularExpression, value: '(a+)+$'}",
    b"weight: 0",
    b"port: 65536",
    b"clusterIP: None",
    b"clusterIP: 198.19.0.1",
    b"status: {podIP: 198.18.0.9}",
    b"\t",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"#",
    b"%YAML 1.2\n",
];

pub(super) const MANIFESTS: Target = Target {
    name: "manifests",
    holds: "a file is read the same twice; each problem has its place, in one printable line; what is taken is taken again from its own text",
    max_len: 16 * 1024,
    words: &[WORDS],
    seeds: files,
    run: manifests,
};

pub(super) const OBJECTS: Target = Target {
    name: "objects",
    holds: "any JSON object becomes the model or problems; routes are in one order; access rules that can not be read are closed",
    max_len: 16 * 1024,
    words: &[
        JSON,
        &[
            b"-1",
            b"1.5",
            b"1e400",
            b"99999999999999999999",
            b"\"\\u0000\"",
            b"\"spec\":{",
            b"\"rules\":[",
            b"\"action\":\"DENY\"",
            b"\"action\":\"CUSTOM\"",
            b"\"from\":[{\"source\":{\"principals\":[\"*\"]}}]",
            b"\"to\":[{\"operation\":{\"ports\":[\"80\"]}}]",
            b"\"when\":[{\"key\":\"source.ip\",\"values\":[\"10.0.0.0/8\"]}]",
            b"\"*\"",
            b"\"selector\":{\"matchLabels\":{\"app\":\"a\"}}",
            b"\"mtls\":{\"mode\":\"STRICT\"}",
            b"\"targetRef\":{}",
            b"\"portLevelMtls\":{\"80\":{}}",
            b"\"kind\":\"HTTPRoute\"",
            b"\"kind\":\"Pod\"",
            b"\"kind\":\"Service\"",
            b"\"kind\":\"AuthorizationPolicy\"",
            b"\"apiVersion\":\"v1\"",
            b"\"apiVersion\":\"security.istio.io/v1\"",
        ],
    ],
    seeds: objects_seeds,
    run: objects,
};

pub(super) const TRANSLATION: Target = Target {
    name: "translation",
    holds: "what the control plane makes of any manifests every proxy takes, and it is gone when they are",
    max_len: 16 * 1024,
    words: &[WORDS],
    seeds: files,
    run: translation,
};

const SHOP: &str = include_str!("../../../control-plane/tests/data/shop.yaml");
const POLICY: &str = include_str!("../../../control-plane/tests/data/policy.yaml");
const CANARY: [&str; 3] = [
    include_str!("../../../examples/canary/catalog.yaml"),
    include_str!("../../../examples/canary/client.yaml"),
    include_str!("../../../examples/canary/route.yaml"),
];

/// Rules and policies.
const TRAFFIC: [&str; 3] = [
    include_str!("../../../examples/traffic/service.yaml"),
    include_str!("../../../examples/traffic/routes.yaml"),
    include_str!("../../../examples/traffic/policies.yaml"),
];

fn files() -> Vec<Vec<u8>> {
    let documents = SHOP.split("---\n").chain(POLICY.split("---\n"));
    documents.chain([SHOP, POLICY]).chain(CANARY).chain(TRAFFIC).map(|text| text.as_bytes().to_vec()).collect()
}

fn objects_seeds() -> Vec<Vec<u8>> {
    let texts = [SHOP, POLICY].into_iter().chain(CANARY).chain(TRAFFIC);
    let all = texts.flat_map(|text| parse_stored("f.yaml", text).manifests);
    all.map(|manifest| manifest.raw.to_string().into_bytes()).collect()
}

fn check_problems(problems: &[Problem], lines: usize) {
    for problem in problems {
        let line = problem.to_string();
        assert!(!line.chars().any(char::is_control), "not one printable line: {line:?}");
        assert!(!problem.message.is_empty() && &*problem.file == "f.yaml");
        assert!(usize::try_from(problem.line).is_ok_and(|line| line <= lines), "line {} of {lines}", problem.line);
    }
}

fn manifests(bytes: &[u8]) -> Shape {
    let text = text(bytes);
    let stored = parse_stored("f.yaml", &text);
    let again = parse_stored("f.yaml", &text);
    assert_eq!(stored.problems, again.problems);
    assert_eq!(stored.manifests.len(), again.manifests.len());
    // YAML knows more line ends than LF.
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1;
    check_problems(&stored.problems, lines);
    assert!(stored.is_whole || !stored.problems.is_empty(), "something is missing, and nobody is told");
    if stored.problems.is_empty() {
        for manifest in &stored.manifests {
            let parsed = parse_value(manifest.raw.clone(), Source::named("f.yaml"));
            let Ok(parsed) = parsed else { panic!("not taken again: {parsed:?}") };
            assert_eq!(parsed.object.reference(), manifest.object.reference());
            assert_eq!(format!("{:?}", parsed.object), format!("{:?}", manifest.object));
        }
    }
    let kinds: BTreeSet<&str> = stored.manifests.iter().map(|manifest| manifest.object.kind()).collect();
    let first =
        stored.problems.first().map(|problem| (problem.field.pattern(), problem.message.get(..12).map(str::to_owned)));
    Shape::of((kinds, magnitude(stored.problems.len()), first, stored.is_whole))
}

fn objects(bytes: &[u8]) -> Shape {
    let Ok(raw) = serde_json::from_slice::<Value>(bytes) else { return Shape::of("no JSON") };
    let stored = parse_value_stored(raw.clone(), Source::named("f.yaml"));
    check_problems(&stored.problems, 0);
    assert!(!stored.manifests.is_empty() || !stored.problems.is_empty());
    let first =
        stored.problems.first().map(|problem| (problem.field.pattern(), problem.message.get(..12).map(str::to_owned)));
    let Some(manifest) = stored.manifests.first() else { return Shape::of(first) };
    match &manifest.object {
        route if route.route().is_some() => match route.route().unwrap_or_else(|| Err(Vec::new())) {
            Ok(set) => {
                let ordered = in_precedence([&set]);
                assert_eq!(ordered.len(), set.rules.requests().iter().map(|rule| rule.matches.len()).sum::<usize>());
                let twice = in_precedence([&set]);
                assert!(
                    ordered
                        .iter()
                        .zip(&twice)
                        .all(|(one, other)| one.rule_index == other.rule_index && one.match_index == other.match_index)
                );
                return Shape::of((
                    magnitude(ordered.len()),
                    set.parents.len().min(4),
                    set.rules.requests().iter().any(|rule| rule.backends.is_empty()),
                ));
            }
            Err(errors) => {
                assert!(!errors.is_empty() && !stored.problems.is_empty(), "refused by the model alone: {errors:?}")
            }
        },
        policy if policy.policy().is_some() => match policy.policy().unwrap_or_else(|| Err(Vec::new())) {
            Ok(set) => {
                assert!(!set.services.is_empty() || !set.requests.is_empty(), "accepted, and says nothing: {stored:?}");
                return Shape::of((
                    magnitude(set.services.len()),
                    magnitude(set.requests.len()),
                    set.services.first().map(|policy| format!("{:?}", policy.all.balance).len().min(32)),
                ));
            }
            Err(errors) => {
                assert!(!errors.is_empty() && !stored.problems.is_empty(), "refused by the model alone: {errors:?}")
            }
        },
        Object::Service(service) => {
            let service = frontend::kubernetes::service(service);
            assert!(!service.host("cluster.local").is_empty());
            return Shape::of((
                magnitude(service.ports.len()),
                matches!(service.addressing, Addressing::Headless),
                magnitude(service.addresses().len()),
            ));
        }
        Object::Pod(pod) => {
            let workload = frontend::kubernetes::workload(pod);
            return Shape::of((
                workload.meshed,
                workload.ready,
                workload.terminating,
                workload.finished,
                workload.host_network,
                magnitude(workload.ports.len()),
            ));
        }
        Object::EndpointSlice(slice) => {
            let set = frontend::kubernetes::endpoints(slice);
            return Shape::of(set.map(|set| (magnitude(set.endpoints.len()), magnitude(set.ports.len()))));
        }
        Object::PeerAuthentication(object) => {
            let policy = frontend::security::peer_authentication(object);
            // Whatever is wrong with it: closed.
            if !policy.refused.is_empty() || !stored.problems.is_empty() {
                assert_eq!((policy.mode, policy.ports.len()), (Some(MtlsMode::Strict), 0), "{stored:?}");
            }
            return Shape::of((
                policy.refused.len().min(4),
                policy.mode.map(MtlsMode::as_str),
                magnitude(policy.ports.len()),
            ));
        }
        Object::AuthorizationPolicy(object) => {
            let policy = frontend::security::authorization_policy(object);
            if !policy.refused.is_empty() || !stored.problems.is_empty() {
                assert!(policy.rules.is_empty(), "not accepted, and has rules: {stored:?}");
            }
            let wants = raw.pointer("/spec/action").and_then(Value::as_str);
            if policy.action == AccessAction::Allow {
                assert!(matches!(wants, None | Some("ALLOW")), "ALLOW out of {wants:?}");
            }
            let selects = !matches!(policy.selection, Selection::Labels(_));
            return Shape::of((
                policy.refused.len().min(4),
                magnitude(policy.rules.len()),
                wants.map(str::to_owned),
                selects,
            ));
        }
        _ => {}
    }
    Shape::of((manifest.object.kind(), first))
}

/// Every name that could be asked for in a world of these items.
fn keys(world: &World, items: &[Item]) -> Vec<Key> {
    let mut keys = Vec::new();
    let nobody = Name::new("a", "b");
    let mut ask = |kind: Kind, name: String, pod: &Name| keys.push(Key::new(kind, Arc::from(name), pod));
    for item in items {
        match item {
            Item::Service(service) => {
                let host = service.host("cluster.local");
                for port in &service.ports {
                    ask(Kind::Route, format!("{host}:{}", port.number), &nobody);
                    for kind in [Kind::Cluster, Kind::Endpoints] {
                        ask(kind, format!("outbound|{}||{host}", port.number), &nobody);
                    }
                    for address in service.addresses() {
                        ask(Kind::Listener, names::outbound(SocketAddr::new(*address, port.number)), &nobody);
                    }
                }
            }
            Item::Workload(pod) => {
                ask(Kind::Listener, names::INBOUND.to_owned(), &pod.name);
                for address in &pod.addresses {
                    ask(Kind::Endpoints, names::workload(*address), &nobody);
                    for port in world.pod_ports(pod).into_iter().chain([1]) {
                        ask(Kind::Listener, names::outbound(SocketAddr::new(*address, port)), &nobody);
                        ask(Kind::Route, SocketAddr::new(*address, port).to_string(), &nobody);
                        for kind in [Kind::Cluster, Kind::Endpoints] {
                            ask(kind, format!("outbound|{port}||{address}"), &nobody);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    keys
}

/// The world's resources by these names.
fn resources(mesh: &Mesh, world: &World, keys: &[Key]) -> Vec<(Kind, Resource)> {
    keys.iter().filter_map(|key| Some((key.kind, resource(mesh, world, key, &View::default())?))).collect()
}

fn mesh() -> Option<Mesh> {
    Some(Mesh { trust_domain: "cluster.local".parse().ok()?, cluster_domain: "cluster.local".into() })
}

/// What a control plane makes of these manifests.
pub(super) fn made(text: &str) -> Vec<(Kind, Resource)> {
    let mut world = World::default();
    let manifests = parse_stored("f.yaml", text).manifests;
    let items: Vec<Item> = manifests.iter().filter_map(|manifest| Item::of(&manifest.object)).collect();
    for item in &items {
        world.apply(item.clone(), &mut HashSet::new());
    }
    mesh().map(|mesh| resources(&mesh, &world, &keys(&world, &items))).unwrap_or_default()
}

/// All that the control plane makes of the examples.
pub(super) fn examples() -> Vec<(Kind, Resource)> {
    [SHOP, POLICY].into_iter().flat_map(made).collect()
}

fn translation(bytes: &[u8]) -> Shape {
    let Some(mesh) = mesh() else { panic!("the mesh has a name") };
    let manifests = parse_stored("f.yaml", &text(bytes)).manifests;
    let items: Vec<Item> = manifests.iter().filter_map(|manifest| Item::of(&manifest.object)).collect();
    let mut world = World::default();
    let mut touched = HashSet::new();
    for item in &items {
        world.apply(item.clone(), &mut touched);
    }
    let keys = keys(&world, &items);
    let all = resources(&mesh, &world, &keys);
    let mut tables = Tables::new(Arc::new(Store::default()));
    tables.attach(Subscriptions::default());
    let mut shapes = BTreeSet::new();
    for (kind, resource) in &all {
        let rejected = tables.apply(*kind, vec![resource.clone()], Vec::new());
        assert!(rejected.is_empty(), "the proxy does not take it: {rejected:?}");
        shapes.insert((kind.as_str(), magnitude(resource.body.len())));
    }
    // In another order it is the same world.
    let mut other = World::default();
    // Of several objects with one name the last counts, and of services with one address the order does not.
    let mut last: Vec<&Item> = Vec::new();
    for item in items.iter().rev() {
        if !last.iter().any(|known| known.reference() == item.reference()) {
            last.push(item);
        }
    }
    for item in &last {
        other.apply((*item).clone(), &mut HashSet::new());
    }
    for (key, (kind, resource)) in
        keys.iter().filter_map(|key| Some((key, (key.kind, resource(&mesh, &world, key, &View::default())?))))
    {
        let again = translate::resource(&mesh, &other, key, &View::default()).map(|resource| resource.version);
        assert_eq!(
            again.as_ref(),
            Some(&resource.version),
            "{kind:?} {} depends on the order of events",
            resource.name
        );
    }
    for item in &items {
        world.delete(item.reference(), &mut touched);
    }
    assert!(world.counts().iter().all(|(_, count)| *count == 0), "{:?}", world.counts());
    assert!(resources(&mesh, &world, &keys).is_empty(), "resources of nothing");
    Shape::of((shapes, world.policies().counts().map(|(_, count)| count)))
}

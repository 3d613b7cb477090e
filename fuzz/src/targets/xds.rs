//! What arrives from a control plane, on the wire and as resources.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use envoy_types::pb::envoy::service::discovery::v3 as theirs;
use weir_proxy::{
    config::{Answer, Store, Tables},
    http::{Limits, RequestHead, h1::RequestDecoder},
    route::Action,
};
use weir_xds::{
    Handler, Kind, Resource, Subscriptions,
    envoy::{cluster::Cluster, endpoint::ClusterLoadAssignment, listener::Listener, route::RouteConfiguration},
    names::{self, Asked},
    prost::Message,
    wire::{DeltaRequest, DeltaResponse},
};

use super::config;
use crate::{Shape, Target, magnitude, none};

pub(super) const WIRE: Target = Target {
    name: "xds_wire",
    holds: "delta messages read as Envoy's own types read them, and come back as they were written",
    max_len: 4096,
    words: &[&[
        b"\x0a",
        b"\x12",
        b"\x1a",
        b"\x22",
        b"\x2a",
        b"\x32",
        b"\x00",
        b"\x01",
        b"\x80",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x05\x0a\x03a.b",
        b"type.googleapis.com/envoy.config.listener.v3.Listener",
        b"\x1a\x01a",
        b"\x22\x01b",
        b"\x2a\x06\x0a\x01k\x12\x01v",
    ]],
    seeds: none,
    run: wire,
};

pub(super) const RESOURCES: Target = Target {
    name: "xds_resources",
    holds: "any resource is in force or refused; refused, what was in force stays; sent twice, nothing changes",
    max_len: 8 * 1024,
    words: &[&[
        b"\x0a",
        b"\x12",
        b"\x1a",
        b"\x22",
        b"\x2a",
        b"\x80\x80\x80\x80\x10",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x00",
        b"weir",
        b"istio",
        b"mtls",
        b"STRICT",
        b"PERMISSIVE",
        b"tlsMode",
        b"spiffe://cluster.local/ns/shop/sa/catalog",
        b"HTTPRoute/shop/catalog/0/0",
        b"outbound|80||catalog.shop.svc.cluster.local",
        b"(a+)+$",
        b"[",
        b"/",
        b"*",
        b":method",
        b"content-length",
        b"a\r\nb",
        b"198.18.0.1",
        b"::",
        b"type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
    ]],
    seeds: bodies,
    run: resources,
};

fn wire(bytes: &[u8]) -> Shape {
    let (request, response) = (DeltaRequest::decode(bytes), DeltaResponse::decode(bytes));
    let (their_request, their_response) =
        (theirs::DeltaDiscoveryRequest::decode(bytes), theirs::DeltaDiscoveryResponse::decode(bytes));
    if let Ok(request) = &request {
        assert_eq!(DeltaRequest::decode(request.encode_to_vec().as_slice()).as_ref(), Ok(request));
    }
    if let Ok(response) = &response {
        assert_eq!(DeltaResponse::decode(response.encode_to_vec().as_slice()).as_ref(), Ok(response));
    }
    // Envoy's type knows more fields, each of which can be wrong; what it takes we take alike.
    if let Ok(theirs) = &their_request {
        let Ok(ours) = &request else { panic!("not taken: {request:?}") };
        assert_eq!(ours.type_url, theirs.type_url);
        assert_eq!(
            (&ours.subscribe, &ours.unsubscribe),
            (&theirs.resource_names_subscribe, &theirs.resource_names_unsubscribe)
        );
        assert_eq!(ours.initial_versions, theirs.initial_resource_versions);
        assert_eq!(ours.nonce, theirs.response_nonce);
        assert_eq!(ours.node.as_ref().map(|node| &node.id), theirs.node.as_ref().map(|node| &node.id));
        assert_eq!(ours.error.as_ref().map(|error| error.code), theirs.error_detail.as_ref().map(|error| error.code));
    }
    if let Ok(theirs) = &their_response {
        let Ok(ours) = &response else { panic!("not taken: {response:?}") };
        assert_eq!((&ours.type_url, &ours.nonce), (&theirs.type_url, &theirs.nonce));
        assert_eq!(ours.removed, theirs.removed_resources);
        assert_eq!(ours.resources.len(), theirs.resources.len());
        for (ours, theirs) in ours.resources.iter().zip(&theirs.resources) {
            assert_eq!((&ours.name, &ours.version), (&theirs.name, &theirs.version));
            let bodies =
                (ours.resource.as_ref().map(|any| &any.value[..]), theirs.resource.as_ref().map(|any| &any.value[..]));
            assert_eq!(bodies.0, bodies.1);
        }
    }
    let counts = request
        .as_ref()
        .map(|one| (one.subscribe.len().min(4), one.initial_versions.len().min(4), one.error.is_some()))
        .ok();
    let parts = response.as_ref().map(|one| (one.resources.len().min(4), one.removed.len().min(4))).ok();
    Shape::of((counts, parts, their_request.is_ok(), their_response.is_ok()))
}

/// A resource as an input: kind, number of its name, body.
fn names_of(kind: Kind) -> Vec<String> {
    config_examples().iter().filter(|(of, _)| *of == kind).map(|(_, resource)| resource.name.clone()).collect()
}

fn config_examples() -> &'static [(Kind, Resource)] {
    static MADE: OnceLock<Vec<(Kind, Resource)>> = OnceLock::new();
    MADE.get_or_init(config::examples)
}

fn bodies() -> Vec<Vec<u8>> {
    let all = config_examples().iter().map(|(kind, resource)| {
        let at = Kind::ALL.iter().position(|one| one == kind).unwrap_or_default();
        let name = names_of(*kind).iter().position(|name| *name == resource.name).unwrap_or_default();
        let number = |at: usize| u8::try_from(at).unwrap_or(u8::MAX);
        [&[number(at), number(name)], &resource.body[..]].concat()
    });
    all.filter(|input| input.len() < 8 * 1024).collect()
}

struct Plane {
    store: Arc<Store>,
    tables: Tables,
}

impl Plane {
    /// A proxy that knows the examples, and has asked for their addresses.
    fn new() -> Self {
        let store = Arc::new(Store::default());
        let tables = Tables::new(store.clone());
        tables.attach(Subscriptions::default());
        let mut plane = Self { store, tables };
        for (kind, resource) in config_examples() {
            if let Some(Asked::Outbound(address)) = Asked::parse(&resource.name) {
                plane.store.outbound(address);
            }
            assert!(plane.send(*kind, resource.clone()).is_none());
        }
        plane
    }

    /// Why it is refused.
    fn send(&mut self, kind: Kind, resource: Resource) -> Option<String> {
        self.tables.apply(kind, vec![resource], Vec::new()).pop().map(|rejection| rejection.reason)
    }

    /// All that is in force, in one order.
    fn state(&self) -> String {
        let inbound = self.store.inbound();
        let ports: BTreeMap<_, _> = inbound.iter().flat_map(|inbound| &inbound.ports).collect();
        let others = inbound.as_ref().map(|inbound| (&inbound.others, &inbound.own));
        format!("{} {ports:?} {others:?}", self.tables.dump())
    }
}

fn heads() -> &'static [RequestHead] {
    static HEADS: OnceLock<Vec<RequestHead>> = OnceLock::new();
    HEADS.get_or_init(|| {
        let requests = [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /v2/a?b=c&version=2 HTTP/1.1\r\nHost: a\r\nversion: two\r\nx-canary: yes\r\nx-canary: no\r\n\r\n",
        ];
        let read = |text: &&str| {
            RequestDecoder::new().decode(&mut BytesMut::from(text.as_bytes()), &Limits::default()).ok().flatten()
        };
        requests.iter().filter_map(read).collect()
    })
}

/// The same message, written anew.
fn canonical(kind: Kind, body: &[u8]) -> Option<Vec<u8>> {
    Some(match kind {
        Kind::Listener => Listener::decode(body).ok()?.encode_to_vec(),
        Kind::Route => RouteConfiguration::decode(body).ok()?.encode_to_vec(),
        Kind::Cluster => Cluster::decode(body).ok()?.encode_to_vec(),
        Kind::Endpoints => ClusterLoadAssignment::decode(body).ok()?.encode_to_vec(),
    })
}

fn resources(bytes: &[u8]) -> Shape {
    let Some(([kind, name], body)) = bytes.split_first_chunk::<2>().map(|(front, body)| (*front, body)) else {
        return Shape::of("too short");
    };
    let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
    let known = names_of(kind);
    let name = known.get(usize::from(name)).cloned().unwrap_or_else(|| "unknown".into());
    let mut plane = Plane::new();
    let before = plane.state();
    let resource = Resource { name: name.clone(), version: "2".into(), body: Bytes::copy_from_slice(body) };
    let refused = plane.send(kind, resource.clone());
    let after = plane.state();
    if let Some(reason) = &refused {
        assert!(!reason.is_empty());
        assert_eq!(before, after, "refused, and in force");
    } else if name == "unknown" {
        assert_eq!(before, after, "nobody asked for it");
    }
    assert_eq!(plane.send(kind, resource.clone()).is_some(), refused.is_some(), "another verdict the second time");
    assert_eq!(plane.state(), after, "sent twice, and something changes");
    if let Some(canonical) = canonical(kind, body) {
        let rewritten = Plane::new().send(kind, Resource { body: canonical.into(), ..resource });
        assert_eq!(
            rewritten.is_some(),
            refused.is_some(),
            "another verdict on the same message: {refused:?} {rewritten:?}"
        );
    } else {
        assert!(refused.is_some(), "taken, and no message");
    }
    let mut shapes = Vec::new();
    for (of, other) in config_examples() {
        let (Kind::Listener, Some(Asked::Outbound(address))) = (*of, Asked::parse(&other.name)) else { continue };
        let Some(entry) = plane.store.outbound(address) else { continue };
        if let Answer::Known(known) = entry.answer().as_ref()
            && let Some(table) = known.routes.as_ref().and_then(|cell| cell.table())
        {
            for head in heads() {
                if let Some(route) = table.find(head) {
                    let split = matches!(route.action(), Action::Forward(_));
                    shapes.push((split, route.request_edits().is_empty()));
                }
            }
        }
    }
    shapes.sort_unstable();
    shapes.dedup();
    let reason = refused.as_ref().map(|reason| reason.chars().take(24).collect::<String>());
    Shape::of((kind.as_str(), reason, shapes, magnitude(after.len()), name == names::INBOUND))
}

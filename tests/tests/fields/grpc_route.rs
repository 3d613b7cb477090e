//! GRPCRoute.

use serde_json::{Value, json};
use weir_tests::is_root;

use crate::{
    ask::call,
    document,
    mesh::{GRPC, HTTP, Mesh},
    objects::{backend, grpc},
    references::{self, Kind},
    requests::{self, Requests},
    table::Table,
};

#[test]
fn grpc_route() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("GRPCRoute") else { return };
    let mesh = Mesh::new("fields-grpc");
    let kind = Kind {
        kind: "GRPCRoute",
        port: GRPC,
        other_port: HTTP,
        spec: json!({}),
        pods: || call("/a.S/M").pods(),
        shares: || call("/a.S/M").shares(8),
        bad: "grpc-status 14",
    };
    references::show(&mut table, &mesh, &kind);
    let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": backend("two", GRPC)}});
    let requests = Requests {
        kind: "GRPCRoute",
        port: GRPC,
        ask: || call("/a.S/M"),
        other_filters: vec![("RequestMirror", mirror)],
    };
    requests::show(&mut table, &mesh, &requests);
    methods(&mut table, &mesh, &requests);
    let plain = grpc(json!({"backendRefs": [backend("one", GRPC)]}));
    let mut hosts = plain.clone();
    hosts["spec"]["hostnames"] = json!(["shop.example"]);
    table.refused(&["spec.hostnames[]"], &hosts, &plain);
    table.finish();
}

fn methods(table: &mut Table, mesh: &Mesh, kind: &Requests) {
    let of = |method: Value| kind.matched(json!({"method": method}));
    let ask = || call("/a.S/M").pod();
    let (service, both) = (of(json!({"service": "a.S"})), of(json!({"service": "a.S", "method": "N"})));
    table.acts(mesh, &ask(), (&service, "one"), (&of(json!({"service": "a.T"})), "two"));
    table.acts(mesh, &ask(), (&both, "two"), (&service, "one"));
    let named = |kind: &str| of(json!({"type": kind, "method": "[LM]"}));
    let (exact, regex) =
        (of(json!({"type": "Exact", "service": "a.S"})), of(json!({"type": "RegularExpression", "service": "a.S"})));
    table.acts(mesh, &call("/aaS/M").pod(), (&exact, "two"), (&regex, "one"));
    table.acts(
        mesh,
        &ask(),
        (&named("RegularExpression"), "one"),
        (&of(json!({"type": "Exact", "method": "LM"})), "two"),
    );
}

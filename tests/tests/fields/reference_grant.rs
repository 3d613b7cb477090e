//! ReferenceGrant.

use serde_json::{Value, json};
use weir_tests::is_root;

use crate::{
    ask::get,
    document,
    mesh::{HTTP, Mesh},
    objects::{and, http},
};

/// A backend of another namespace: its Service has no endpoints, which is another status than that of a backend which is not granted.
#[test]
fn reference_grant() {
    if !is_root() {
        return;
    }
    let Some(mut table) = document::table("ReferenceGrant") else { return };
    let mesh = Mesh::new("fields-grant");
    let port = json!({"name": "http", "port": HTTP, "targetPort": 8080});
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "far", "namespace": "elsewhere"},
        "spec": {"clusterIP": "198.19.0.13", "selector": {"app": "far"}, "ports": [port]},
    });
    mesh.world.write("far", &service.to_string());
    let route = http(json!({"backendRefs": [{"name": "far", "namespace": "elsewhere", "port": HTTP}]}));
    let (from, to) = (
        json!({"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}),
        json!({"group": "", "kind": "Service", "name": "far"}),
    );
    let grant = |from: Value, to: Value| {
        let grant = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant", "metadata": {"name": "grant", "namespace": "elsewhere"},
            "spec": {"from": [from], "to": [to]},
        });
        [route.clone(), grant]
    };
    let granted = grant(from.clone(), to.clone());
    for (key, other) in [("group", "apps"), ("kind", "TCPRoute"), ("namespace", "market")] {
        let other = grant(and(from.clone(), json!({key: other})), to.clone());
        table.acts(&mesh, &get("/").status(), (&granted, "503"), (&other, "500"));
    }
    for (key, other) in [("group", "apps"), ("kind", "Secret"), ("name", "near")] {
        let other = grant(from.clone(), and(to.clone(), json!({key: other})));
        table.acts(&mesh, &get("/").status(), (&granted, "503"), (&other, "500"));
    }
    table.finish();
}

//! A cluster with IPv6 beside IPv4.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a step that fails is a failed test

use std::process::ExitCode;

use k8s_openapi::api::core::v1::{Pod, Service};
use weir_cluster::{Case, Options, cases, suite};

const SERVERS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: app, image: 'weir.test/app:1', args: [serve]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

async fn both_families_reach_across_nodes(case: &Case<'_>) {
    case.apply(SERVERS);
    let pods = case.ready_with("app=web", 2).await;
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
    let from = name(&pods[0]);
    let to: Vec<String> =
        pods[1].status.clone().unwrap().pod_ips.unwrap().into_iter().map(|address| address.ip).collect();
    let services = case
        .until("web", "has two addresses", |service: &Service| {
            service.spec.clone()?.cluster_ips.filter(|addresses| addresses.len() == 2)
        })
        .await;
    assert!(to.len() == 2 && to[1].starts_with("fd00:") && services[1].starts_with("fd00:"), "{to:?} {services:?}");
    let url = |address: &str, port: u16| {
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        format!("http://{address}:{port}/")
    };
    for address in &to {
        let said = case.exec(&from, &["/app", "fetch", &url(address, 8080)]);
        assert!(said.contains(&name(&pods[1])), "{said}");
    }
    for address in &services {
        // The rules of a new Service are on the nodes within a second or so: the first calls may come too early.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            match case.cluster.kubectl(&["-n", case.namespace, "exec", &from, "--", "/app", "fetch", &url(address, 80)])
            {
                Ok(said) => break assert!(said.contains("\"pod\":\"web-"), "{said}"),
                Err(error) => assert!(std::time::Instant::now() < end, "{error:#}"),
            }
        }
    }
}

fn main() -> ExitCode {
    suite::run(
        "The cluster of the tests, dual stack",
        Options { dual_stack: true, ..Options::default() },
        cases![both_families_reach_across_nodes],
    )
}

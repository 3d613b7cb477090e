//! etcd, API server, controllers and scheduler.

use std::{path::Path, sync::Arc};

use crate::{
    address::{API, SERVICES_V4, SERVICES_V6},
    layout::Layout,
    place::Place,
    service::Service,
};

/// The usual limits are for API servers that others want something from too; at start they cost seconds.
const EAGER: &str = "--kube-api-qps=500 --kube-api-burst=1000";

/// The programs of the control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    pub(crate) etcd: Service,
    pub(crate) api_server: Service,
    /// What works only with an API server.
    pub(crate) followers: [Service; 2],
}

impl ControlPlane {
    pub(crate) fn new(layout: &Layout, place: &Arc<Place>, tools: &Path, dual_stack: bool) -> Self {
        let service = |name: &str, program: &str, arguments: &str| {
            Service::new(name, place, tools.join(program), arguments, &layout.logs())
        };
        let pki = layout.pki();
        let pki = pki.display();
        let data = layout.private().join("etcd");
        let data = data.display();
        let services = if dual_stack { format!("{SERVICES_V4},{SERVICES_V6}") } else { SERVICES_V4.to_owned() };
        // No fsync: nothing of this cluster outlives its processes.
        let etcd = format!(
            "--data-dir {data} --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379
             --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380"
        );
        // Aggregator routing calls webhooks at the addresses of their pods: Service addresses lead nowhere here, where no kube-proxy is.
        let api_server = format!(
            "--etcd-servers=http://127.0.0.1:2379 --advertise-address={API} --service-cluster-ip-range={services}
             --client-ca-file={pki}/ca.crt --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key
             --service-account-key-file={pki}/sa.crt --service-account-signing-key-file={pki}/sa.key
             --service-account-issuer=https://kubernetes.default.svc --authorization-mode=Node,RBAC
             --enable-admission-plugins=NodeRestriction --allow-privileged=true --enable-aggregator-routing=true
             --kubelet-preferred-address-types=InternalIP --kubelet-client-certificate={pki}/admin.crt
             --kubelet-client-key={pki}/admin.key"
        );
        // It makes this folder, which else is one of the machine's.
        let plugins = layout.private().join("flex-volume-plugins");
        let plugins = plugins.display();
        let controllers = format!(
            "--kubeconfig={pki}/controller-manager.conf --leader-elect=false --use-service-account-credentials=true
             --service-account-private-key-file={pki}/sa.key --root-ca-file={pki}/ca.crt
             --flex-volume-plugin-dir={plugins} {EAGER}"
        );
        let scheduler = format!("--kubeconfig={pki}/scheduler.conf --leader-elect=false {EAGER}");
        Self {
            etcd: service("etcd", "etcd", &etcd),
            api_server: service("apiserver", "kube-apiserver", &api_server),
            followers: [
                service("controller-manager", "kube-controller-manager", &controllers),
                service("scheduler", "kube-scheduler", &scheduler),
            ],
        }
    }
}

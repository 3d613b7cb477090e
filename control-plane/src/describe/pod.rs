//! A pod: whether it is in the mesh, who selects it, and who may call it.

use weir_config::{
    describe::{AccessPolicy, Plaintext, Pod, PodPort},
    model::{AUTHORIZATION_POLICY_KIND, AccessAction, AuthorizationPolicy, MtlsMode, Name, PEER_AUTHENTICATION_KIND},
};

use super::protocol;
use crate::{translate::Mesh, world::World};

/// What is in force for a pod; `None` where it is not known.
pub fn pod(mesh: &Mesh, world: &World, name: &Name) -> Option<Pod> {
    let pod = world.workload(name)?;
    let mtls = world.policies().mtls(pod);
    let ports = world.pod_ports(pod).into_iter().map(|number| {
        let (speaks, service) = world.pod_protocol(pod, number);
        PodPort {
            number,
            protocol: protocol(speaks),
            service: service.map(|service| service.name.to_string()),
            captured: pod.captures(number),
            plaintext: plaintext(mtls.ports.get(&number).unwrap_or(&mtls.all)),
        }
    });
    Some(Pod {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        addresses: pod.addresses.clone(),
        in_mesh: pod.meshed,
        namespace_injected: world.is_injected(&name.namespace),
        ready: pod.ready,
        identity: mesh.identity(pod).filter(|_| pod.meshed).map(|identity| identity.to_string()),
        services: world.services_of(pod).map(|service| service.name.to_string()).collect(),
        ports: ports.collect(),
        others: plaintext(&mtls.all),
        access: world.policies().access(pod).map(access).collect(),
    })
}

fn plaintext((mode, by): &(MtlsMode, Option<Name>)) -> Plaintext {
    let object = by.as_ref().map(|name| format!("{PEER_AUTHENTICATION_KIND}/{name}"));
    Plaintext { mode: mode.as_str().to_owned(), object }
}

fn access(policy: &AuthorizationPolicy) -> AccessPolicy {
    let action = match policy.action {
        AccessAction::Allow => "ALLOW",
        AccessAction::Deny => "DENY",
        AccessAction::Nothing => "NONE",
    };
    AccessPolicy {
        object: format!("{AUTHORIZATION_POLICY_KIND}/{}", policy.name),
        action: action.to_owned(),
        rules: policy.rules.len(),
        refused: policy.refused.iter().map(|(field, why)| format!("{field}: {why}")).collect(),
    }
}

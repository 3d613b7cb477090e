//! `weir sandbox status`: what there is, as tables.

use std::process::ExitCode;

use weir_sandbox::{
    Client, Layout,
    pod::state::{ContainerState, Phase},
    supervisor::protocol::{PodView, Status},
};

use crate::{
    failure::Failure,
    table::{print as table, row},
};

/// Events shown without `--events`.
const LAST_EVENTS: usize = 8;

pub(crate) fn run(layout: &Layout, all_events: bool, json: bool) -> Result<ExitCode, Failure> {
    let status = Client::new(layout).status().map_err(Failure::failed)?;
    if json {
        say!("{}", serde_json::to_string_pretty(&status).map_err(Failure::failed)?);
        return Ok(ExitCode::SUCCESS);
    }
    print(&status, all_events);
    Ok(ExitCode::SUCCESS)
}

fn print(status: &Status, all_events: bool) {
    say!("sandbox {}: {}\n", status.name, if status.ready { "all ready" } else { "not all ready" });
    let mut rows = vec![row(&["NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "ADDRESS", "MESH"])];
    for (name, pod) in &status.pods {
        let (namespace, name) = name.split_once('/').unwrap_or_default();
        let (ready, all) = containers(pod);
        let restarts: u32 = pod.status.containers.iter().map(|container| container.restarts).sum();
        let addresses: Vec<String> = pod.status.addresses().iter().map(ToString::to_string).collect();
        let mesh = pod.status.containers.iter().any(|container| container.name == weir_mesh::names::PROXY_CONTAINER);
        rows.push(row(&[
            namespace,
            name,
            &format!("{ready}/{all}"),
            &phase(pod),
            &restarts.to_string(),
            &addresses.join(","),
            if mesh { "yes" } else { "no" },
        ]));
    }
    table(&rows);
    say!("");
    let mut rows = vec![row(&["NAMESPACE", "SERVICE", "ADDRESS", "PORTS", "READY ENDPOINTS"])];
    for (name, service) in &status.services {
        let (namespace, name) = name.split_once('/').unwrap_or_default();
        let endpoints = format!("{} of {}", service.ready, service.all);
        rows.push(row(&[namespace, name, &service.address, &service.ports.join(","), &endpoints]));
    }
    table(&rows);
    let skip = if all_events { 0 } else { status.events.len().saturating_sub(LAST_EVENTS) };
    say!("");
    for event in status.events.iter().skip(skip) {
        let mark = if event.warning { "!" } else { " " };
        say!("{} {mark} {}: {}: {}", event.time, event.object, event.reason, event.message);
    }
}

fn containers(pod: &PodView) -> (usize, usize) {
    let lasting = || pod.status.containers.iter().filter(|container| container.state != ContainerState::Ended(0));
    (lasting().filter(|container| container.ready).count(), lasting().count())
}

fn phase(pod: &PodView) -> String {
    let status = &pod.status;
    if status.terminating {
        return "Terminating".into();
    }
    let waiting = status.containers.iter().find_map(|container| match &container.state {
        ContainerState::Waiting(reason) if container.restarts > 0 => reason.split(':').next().map(str::to_owned),
        _ => None,
    });
    match (status.phase, &status.message) {
        (Phase::Admission, Some(message)) => format!("not admitted: {message}"),
        (Phase::Pending, Some(message)) => format!("Pending: {message}"),
        (phase, _) => waiting.unwrap_or_else(|| format!("{phase:?}")),
    }
}

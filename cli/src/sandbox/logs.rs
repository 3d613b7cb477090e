//! `weir sandbox logs`: the files that the containers' output goes to, also after the supervisor has ended.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

use weir_sandbox::{Client, Layout, supervisor::protocol::Status};

use crate::{failure::Failure, out};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn run(layout: &Layout, pod: &str, container: Option<String>, follow: bool) -> Result<ExitCode, Failure> {
    let status = Client::new(layout).status().map_err(Failure::failed)?;
    let path = path(layout, &status, pod, container.as_deref()).map_err(Failure::failed)?;
    let mut file = File::open(&path)
        .map_err(|error| Failure::failed(format!("the container has written nothing yet ({error})")))?;
    if !copy(&mut file).map_err(Failure::failed)? || !follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        sleep(LOOK);
        let length = std::fs::metadata(&path).map(|found| found.len()).unwrap_or(0);
        if length < file.stream_position().map_err(Failure::failed)? {
            // A new log was begun: the rest of the old one first.
            copy(&mut file).map_err(Failure::failed)?;
            file = File::open(&path).map_err(Failure::failed)?;
            file.seek(SeekFrom::Start(0)).map_err(Failure::failed)?;
        }
        if !copy(&mut file).map_err(Failure::failed)? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Shows what is new; false where whoever read our output has seen enough.
fn copy(file: &mut File) -> io::Result<bool> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(out::bytes(&bytes))
}

fn path(layout: &Layout, status: &Status, wanted: &str, container: Option<&str>) -> Result<PathBuf, String> {
    let parts: Vec<&str> = wanted.split('/').collect();
    let (namespace, deployment, name) = match parts.as_slice() {
        [name] => (None, false, *name),
        ["deploy" | "deployment", name] => (None, true, *name),
        [namespace, name] => (Some(*namespace), false, *name),
        [namespace, "deploy" | "deployment", name] => (Some(*namespace), true, *name),
        _ => return Err(format!("{wanted:?} is not POD, NAMESPACE/POD, deploy/NAME or NAMESPACE/deploy/NAME")),
    };
    let (full, pod) = status
        .pods
        .iter()
        .filter(|(full, _)| namespace.is_none_or(|namespace| full.starts_with(&format!("{namespace}/"))))
        .find(|(full, pod)| match deployment {
            true => pod.deployment.as_deref() == Some(name),
            false => full.split_once('/').is_some_and(|(_, own)| own == name),
        })
        .ok_or_else(|| {
            let names: Vec<&str> = status.pods.keys().map(String::as_str).collect();
            format!("there is no pod {wanted}; there are {}", names.join(", "))
        })?;
    let names: Vec<&str> = pod.status.containers.iter().map(|container| container.name.as_str()).collect();
    let container = match container {
        Some(container) if names.contains(&container) => container,
        Some(container) => return Err(format!("{full} has no container {container}; it has {}", names.join(", "))),
        None => pod
            .status
            .containers
            .iter()
            .find(|container| !container.init)
            .map(|container| container.name.as_str())
            .ok_or_else(|| format!("{full} has no container yet"))?,
    };
    let (namespace, name) = full.split_once('/').unwrap_or_default();
    Ok(layout.log(namespace, name, container))
}

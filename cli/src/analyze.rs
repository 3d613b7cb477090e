//! `weir analyze`: what can not be done of manifests, or of what is stored in a cluster, with file, line, field and remedy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use clap::Args;
use serde_json::{Value, json};
use weir_config::{
    Manifest, Problem,
    frontend::gateway::only_ours,
    manifest::{Source, parse_value_stored, trim},
    object::KINDS,
    parse_stored, validate,
};

use crate::{failure::Failure, out};

/// Most files of a folder.
const MAX_FILES: usize = 10_000;
/// Kinds that are asked for of a cluster, as `kubectl get` takes them; what a cluster does not have is passed over.
const RESOURCES: [&str; 11] = [
    "namespaces",
    "services",
    "httproutes.gateway.networking.k8s.io",
    "grpcroutes.gateway.networking.k8s.io",
    "tlsroutes.gateway.networking.k8s.io",
    "tcproutes.gateway.networking.k8s.io",
    "referencegrants.gateway.networking.k8s.io",
    "destinationrules.networking.istio.io",
    "trafficpolicies.weir.dev",
    "peerauthentications.security.istio.io",
    "authorizationpolicies.security.istio.io",
];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Files, and folders whose *.yaml, *.yml and *.json are read
    #[arg(required_unless_present = "cluster", conflicts_with = "cluster")]
    paths: Vec<PathBuf>,
    /// Read what is stored in the cluster that kubectl speaks to
    #[arg(long)]
    cluster: bool,
    /// How the findings are shown: `text` or `json`
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// What was read and found.
#[derive(Default)]
struct Found {
    manifests: Vec<Manifest>,
    problems: Vec<Problem>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut found = Found::default();
    if arguments.cluster {
        from_cluster(&mut found)?;
    } else {
        for file in files(&arguments.paths)? {
            let text =
                fs::read_to_string(&file).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
            let stored = parse_stored(&file.display().to_string(), &text);
            found.problems.extend(stored.problems);
            found.manifests.extend(stored.manifests);
        }
    }
    found.problems.extend(validate(&found.manifests));
    let problems = found.problems;
    if arguments.output == "json" {
        let list: Vec<Value> = problems.iter().map(as_json).collect();
        out::bytes(json!({"objects": found.manifests.len(), "problems": list}).to_string().as_bytes());
        say!("");
    } else {
        for problem in &problems {
            say!("{problem}");
        }
        let (objects, count) = (found.manifests.len(), problems.len());
        say!("{objects} objects can be read, {count} problems");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_json(problem: &Problem) -> Value {
    let object = problem.object.as_ref();
    json!({
        "file": &*problem.file,
        "line": problem.line,
        "kind": object.map(|object| &object.kind),
        "namespace": object.map(|object| &object.namespace),
        "name": object.map(|object| &object.name),
        "field": problem.field.to_string(),
        "message": problem.message,
    })
}

/// All files that are meant, in the order of their names.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let kind = fs::metadata(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        if !kind.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        gather(path, &mut inside)?;
        if inside.is_empty() {
            return Err(Failure::usage(format!("{} has no *.yaml, *.yml or *.json", path.display())));
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

/// Links are not followed: a folder may lead to itself.
fn gather(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::usage(format!("{}: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        let is_manifest =
            path.extension().and_then(|end| end.to_str()).is_some_and(|end| ["yaml", "yml", "json"].contains(&end));
        if kind.is_dir() {
            gather(&path, files)?;
        } else if kind.is_file() && is_manifest {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(Failure::usage(format!("more than {MAX_FILES} files: name a smaller folder")));
        }
    }
    Ok(())
}

/// By kubectl, which knows where the cluster is and who asks.
fn from_cluster(found: &mut Found) -> Result<(), Failure> {
    for resource in RESOURCES {
        let arguments = ["get", resource, "--all-namespaces", "--output", "json", "--ignore-not-found"];
        let output = Command::new("kubectl").args(arguments).output();
        let output =
            output.map_err(|error| Failure::usage(format!("kubectl can not be run: {error}; put it into PATH")))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if reason.contains("the server doesn't have a resource type") {
                continue;
            }
            return Err(Failure::failed(format!("kubectl get {resource}: {reason}")));
        }
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let list: Value = serde_json::from_slice(&output.stdout).map_err(Failure::failed)?;
        for item in list.get("items").and_then(Value::as_array).into_iter().flatten() {
            one(item.clone(), found);
        }
    }
    Ok(())
}

/// An object as the API server has it: with what it adds, and with what is other controllers'.
fn one(mut object: Value, found: &mut Found) {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    let is_rule = KINDS.iter().any(|(api, known, _)| *known == kind && api.contains('/'));
    if is_rule {
        trim(&mut object);
    } else if let Some(top) = object.as_object_mut() {
        top.remove("status");
    }
    if !only_ours(&mut object) {
        return;
    }
    let stored = parse_value_stored(object, Source::named("cluster"));
    found.problems.extend(stored.problems);
    found.manifests.extend(stored.manifests);
}

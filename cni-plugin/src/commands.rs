//! The six commands of the specification.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use weir_init::RuleSet;
use weir_mesh::{CaptureSettings, names::CAPTURE_ANNOTATION};

use crate::{
    Answer, Environment,
    config::{Config, NEWEST, VERSIONS},
    error::{CniError, Code},
    log, once,
};

/// Note that a runtime without annotations was complained about.
const SAID_NO_ANNOTATIONS: &str = "said-no-annotations";
/// A thread's own network namespace.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Carries out the command that the environment names. `version` becomes the version that an error is to be written in.
pub(crate) fn run(
    environment: &Environment,
    stdin: &[u8],
    version: &mut String,
    stderr: &mut dyn Write,
) -> Result<Answer, CniError> {
    let command = environment.command.as_deref().ok_or_else(|| missing("CNI_COMMAND"))?;
    if command == "VERSION" {
        return Ok(versions(stdin));
    }
    let config = Config::parse(stdin)?;
    let spoken = config.version()?;
    spoken.clone_into(version);
    match command {
        "ADD" => add(environment, &config, stderr),
        "DEL" => delete(environment),
        "CHECK" => since("0.4.0", spoken, command).and_then(|()| check(environment, &config)),
        "STATUS" => since("1.1.0", spoken, command).and_then(|()| status()),
        // Nothing of a pod outlives its namespace, so there is never anything to collect.
        "GC" => since("1.1.0", spoken, command).map(|()| silent()),
        other => Err(CniError::new(
            Code::Environment,
            "CNI_COMMAND is not known",
            format!("CNI_COMMAND is {:?}; known are ADD, DEL, CHECK, STATUS, GC and VERSION", shown(other)),
        )),
    }
}

fn add(environment: &Environment, config: &Config<'_>, stderr: &mut dyn Write) -> Result<Answer, CniError> {
    let netns = attachment(environment)?;
    let previous = config.previous()?;
    match config.annotations() {
        Err(reason) => {
            if once::first(&config.state_dir(), SAID_NO_ANNOTATIONS) {
                log::warning(stderr, &reason.to_string());
            }
        }
        Ok(annotations) => {
            if let Some(json) = annotations.get(CAPTURE_ANNOTATION) {
                let rules = rules(json)?;
                refuse_own_namespace(&netns)?;
                let applied = weir_init::apply_in_netns(&netns, &rules).map_err(|error| {
                    redirect_error(&error, Code::Redirect, "the redirect could not be put in force")
                })?;
                log::in_force(stderr, &environment.pod(), &netns, applied);
            }
        }
    }
    Ok(said(previous.to_owned()))
}

/// The rules end with the pod's namespace. To take them away sooner would let a process that still runs in the pod go around
/// the mesh in its last moments, so there is nothing to do, whether there ever was a redirect or not.
fn delete(environment: &Environment) -> Result<Answer, CniError> {
    environment.container.as_ref().ok_or_else(|| missing("CNI_CONTAINERID"))?;
    environment.interface.as_ref().ok_or_else(|| missing("CNI_IFNAME"))?;
    Ok(silent())
}

fn check(environment: &Environment, config: &Config<'_>) -> Result<Answer, CniError> {
    let netns = attachment(environment)?;
    config.previous()?;
    let annotation = config.annotations().ok().and_then(|annotations| annotations.get(CAPTURE_ANNOTATION));
    if let Some(json) = annotation {
        let rules = rules(json)?;
        refuse_own_namespace(&netns)?;
        weir_init::in_netns(&netns, || weir_init::verify_in_current_netns(&rules))
            .map_err(|error| redirect_error(&error, Code::NotInForce, "the redirect is not in force"))?;
    }
    Ok(silent())
}

/// Ready where this kernel takes the rules: tried in a namespace made for it and gone at once.
fn status() -> Result<Answer, CniError> {
    weir_init::try_in_new_netns(&RuleSet::new(&CaptureSettings::default()))
        .map_err(|error| CniError::new(Code::Unavailable, "this node can not redirect traffic", error.to_string()))?;
    Ok(silent())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions<'a> {
    cni_version: &'a str,
    supported_versions: [&'a str; VERSIONS.len()],
}

/// Answers in the version asked with, whatever was asked: it is how a runtime finds out which to use.
fn versions(stdin: &[u8]) -> Answer {
    let asked = Config::parse(stdin).ok().and_then(|config| config.cni_version);
    let asked = asked.as_deref().filter(|text| is_version(text)).unwrap_or(NEWEST);
    let form = Versions { cni_version: asked, supported_versions: VERSIONS };
    said(serde_json::to_string(&form).unwrap_or_default()) // plain strings: this can not fail
}

fn is_version(text: &str) -> bool {
    text.len() <= 32 && text.split('.').count() == 3 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn said(text: String) -> Answer {
    Answer { failed: false, text: Some(text) }
}

fn silent() -> Answer {
    Answer { failed: false, text: None }
}

/// Variables that `ADD` and `CHECK` can not do without; the namespace is what we need of them.
fn attachment(environment: &Environment) -> Result<PathBuf, CniError> {
    environment.container.as_ref().ok_or_else(|| missing("CNI_CONTAINERID"))?;
    environment.interface.as_ref().ok_or_else(|| missing("CNI_IFNAME"))?;
    environment.netns.clone().ok_or_else(|| missing("CNI_NETNS"))
}

fn missing(variable: &str) -> CniError {
    CniError::new(
        Code::Environment,
        format!("{variable} is missing"),
        format!("the environment variable {variable} is not set: is the plugin called by a container runtime?"),
    )
}

fn since(first: &str, spoken: &str, command: &str) -> Result<(), CniError> {
    let position = |version| VERSIONS.iter().position(|known| *known == version);
    if position(spoken) >= position(first) {
        return Ok(());
    }
    Err(CniError::new(
        Code::IncompatibleVersion,
        "incompatible CNI version",
        format!("{command} exists since version {first}; the configuration's cniVersion is {spoken}"),
    ))
}

fn rules(json: &str) -> Result<RuleSet, CniError> {
    let settings = CaptureSettings::from_json(json).map_err(|error| {
        CniError::new(
            Code::Config,
            format!("the pod's annotation {CAPTURE_ANNOTATION} can not be used"),
            format!("{error}; it is written by Weir's webhook alone: remove it from the pod's template"),
        )
    })?;
    Ok(RuleSet::new(&settings))
}

/// The node's own traffic must never be redirected, whatever a runtime says the pod's namespace is.
fn refuse_own_namespace(netns: &Path) -> Result<(), CniError> {
    let identity = |path: &Path| -> io::Result<(u64, u64)> {
        let data = fs::metadata(path)?;
        Ok((data.dev(), data.ino()))
    };
    // A path that can not be looked at is refused where it is entered, with the reason.
    if let (Ok(pod), Ok(own)) = (identity(netns), identity(Path::new(OWN_NETNS)))
        && pod == own
    {
        return Err(CniError::new(
            Code::Environment,
            "CNI_NETNS is the node's own network namespace",
            format!(
                "{} is the namespace that the plugin itself runs in; the node is never redirected",
                netns.display()
            ),
        ));
    }
    Ok(())
}

fn redirect_error(error: &weir_init::Error, code: Code, message: &str) -> CniError {
    let (code, message) = match error {
        weir_init::Error::NamespaceGone { .. } | weir_init::Error::NamespaceEntry { .. } => {
            (Code::Environment, "CNI_NETNS can not be entered")
        }
        weir_init::Error::Thread(_) => (Code::TryAgain, message),
        _ => (code, message),
    };
    CniError::new(code, message, error.to_string())
}

fn shown(text: &str) -> String {
    text.chars().take(32).collect()
}

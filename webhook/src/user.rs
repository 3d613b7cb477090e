//! The pod as its user wrote it: the few facts that decide about injection, read strictly from the raw object.

use serde_json::{Map, Value};
use weir_mesh::{names, ports};

use crate::{
    edit::get,
    refusal::{Reason, Refusal},
};

/// Where a container is listed in the pod's spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Init,
    Main,
    Ephemeral,
}

impl List {
    pub(crate) const ALL: [Self; 3] = [Self::Init, Self::Main, Self::Ephemeral];

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::Main => "containers",
            Self::Ephemeral => "ephemeralContainers",
        }
    }
}

/// One container of the pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Container<'a> {
    pub(crate) list: List,
    pub(crate) index: usize,
    pub(crate) name: &'a str,
    pub(crate) raw: &'a Value,
}

impl Container<'_> {
    /// Path for people, such as `spec.containers[0]`.
    pub(crate) fn path(&self) -> String {
        format!("spec.{}[{}]", self.list.key(), self.index)
    }

    /// True for the container that this mesh adds under its name, or an earlier version of it. Containers are judged by what
    /// they run, not by annotations; whatever else is in them is put right later.
    pub(crate) fn is_ours(&self, image: &str, binary: &str) -> bool {
        self.list == List::Init
            && (self.raw.get("image").and_then(Value::as_str) == Some(image)
                || get(self.raw, &["command", "0"]).and_then(Value::as_str) == Some(binary))
    }

    /// Runs beside the application (as opposed to an init container that ends).
    pub(crate) fn keeps_running(&self) -> bool {
        match self.list {
            List::Main => true,
            List::Init => self.raw.get("restartPolicy").and_then(Value::as_str) == Some("Always"),
            List::Ephemeral => false,
        }
    }
}

/// What the pod asks about injection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// No label: the API server's selectors have decided.
    Unsaid,
    /// `weir.dev/inject=true`
    Yes,
    /// `weir.dev/inject=false`
    No,
}

/// The pod as its user wrote it.
pub(crate) struct UserPod<'a> {
    pod: &'a Value,
    pub(crate) containers: Vec<Container<'a>>,
    annotations: Option<&'a Map<String, Value>>,
}

impl<'a> UserPod<'a> {
    /// Reads a pod or a pod template.
    ///
    /// # Errors
    /// Whatever has not the shape that the Kubernetes API gives it, all of it.
    pub(crate) fn read(pod: &'a Value) -> Result<Self, Refusal> {
        let mut reasons = Vec::new();
        let mut expect = |path: &str, fits: bool, expected| {
            if !fits {
                reasons.push(Reason::Malformed { path: path.to_owned(), expected });
            }
        };
        expect("the pod", pod.is_object(), "an object");
        expect("spec", get(pod, &["spec"]).is_some_and(Value::is_object), "an object");
        for path in [&["metadata"][..], &["metadata", "labels"], &["metadata", "annotations"]] {
            expect(&path.join("."), get(pod, path).is_none_or(Value::is_object), "an object");
        }
        for key in ["initContainers", "containers", "ephemeralContainers", "volumes"] {
            expect(&format!("spec.{key}"), get(pod, &["spec", key]).is_none_or(Value::is_array), "a list");
        }
        let annotations = get(pod, &["metadata", "annotations"]).and_then(Value::as_object);
        for (name, value) in annotations.into_iter().flatten() {
            if name.starts_with(names::PREFIX) {
                expect(&format!("annotation {}", printable(name)), value.is_string(), "a string");
            }
        }
        let mut containers = Vec::new();
        for list in List::ALL {
            let raw = get(pod, &["spec", list.key()]).and_then(Value::as_array);
            for (index, raw) in raw.into_iter().flatten().enumerate() {
                match raw.get("name").and_then(Value::as_str) {
                    Some(name) => containers.push(Container { list, index, name, raw }),
                    None => expect(&format!("spec.{}[{index}].name", list.key()), false, "a string"),
                }
            }
        }
        Refusal::unless_empty(reasons)?;
        Ok(Self { pod, containers, annotations })
    }

    /// What the pod's label says.
    pub(crate) fn wish(&self) -> Result<Wish, Reason> {
        match get(self.pod, &["metadata", "labels", names::INJECT_LABEL]) {
            None => Ok(Wish::Unsaid),
            Some(Value::String(text)) if text == "true" => Ok(Wish::Yes),
            Some(Value::String(text)) if text == "false" => Ok(Wish::No),
            Some(other) => {
                Err(Reason::Label(printable(&other.as_str().map_or_else(|| other.to_string(), str::to_owned))))
            }
        }
    }

    pub(crate) fn host_network(&self) -> bool {
        get(self.pod, &["spec", "hostNetwork"]) == Some(&Value::Bool(true))
    }

    pub(crate) fn windows(&self) -> bool {
        let says = |path: &[&str]| get(self.pod, path).and_then(Value::as_str) == Some("windows");
        says(&["spec", "os", "name"])
            || says(&["spec", "nodeSelector", "kubernetes.io/os"])
            || says(&["spec", "nodeSelector", "beta.kubernetes.io/os"])
    }

    /// The mirror of a static pod: the kubelet runs what is in its file, whatever is in the API.
    pub(crate) fn mirror(&self) -> bool {
        self.annotation("kubernetes.io/config.mirror").is_some()
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&'a str> {
        self.annotations?.get(name)?.as_str()
    }

    /// The annotations that have a text.
    pub(crate) fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.annotations.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
    }

    /// `terminationGracePeriodSeconds`, 30 where it is not said, as the API server does.
    pub(crate) fn grace_seconds(&self) -> u32 {
        const DEFAULT_SECONDS: u32 = 30;
        get(self.pod, &["spec", "terminationGracePeriodSeconds"])
            .and_then(Value::as_u64)
            .map_or(DEFAULT_SECONDS, |seconds| u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// The index and value of the volume with this name.
    pub(crate) fn volume(&self, name: &str) -> Option<(usize, &'a Value)> {
        let volumes = get(self.pod, &["spec", "volumes"])?.as_array()?;
        volumes.iter().enumerate().find(|(_, volume)| volume.get("name").and_then(Value::as_str) == Some(name))
    }

    /// Everything that runs as the proxy's user (its traffic would pass by the redirect) and everything that serves on the
    /// proxy's ports. `skip` names our own containers.
    pub(crate) fn clashes(&self, skip: &[&str]) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let is_proxy = |raw: Option<&Value>| {
            raw.and_then(|context| context.get("runAsUser")).and_then(Value::as_f64)
                == Some(f64::from(ports::PROXY_UID))
        };
        if is_proxy(get(self.pod, &["spec", "securityContext"])) {
            reasons.push(Reason::ProxyUser("spec.securityContext.runAsUser".into()));
        }
        let foreign =
            self.containers.iter().filter(|container| container.list != List::Init || !skip.contains(&container.name));
        for container in foreign {
            if is_proxy(container.raw.get("securityContext")) {
                let name = printable(container.name);
                reasons.push(Reason::ProxyUser(format!("securityContext.runAsUser of container {name}")));
            }
            let declared = container.raw.get("ports").and_then(Value::as_array);
            for (index, declared) in declared.into_iter().flatten().enumerate() {
                let port =
                    declared.get("containerPort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
                if let Some(port) = port.filter(|port| ports::RESERVED.contains(port)) {
                    let path = format!("{}.ports[{index}].containerPort", container.path());
                    reasons.push(Reason::ReservedPort { path, port });
                }
            }
        }
        reasons
    }
}

/// A text that is safe in a message: short, and without control characters.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 64;
    text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

//! What the runtime noted of an attachment (libcni's cache, kind `cniCacheV1`): which pod, which annotations, which namespace.
//!
//! libcni before 1.2 notes no namespace; then it stands in the result, with the interfaces that were made in it.

use serde::Deserialize;
use weir_mesh::names::CAPTURE_ANNOTATION;

use crate::config::RuntimeConfig;

/// Largest note that is read, in bytes: annotations have at most 256 KiB, configuration and result a few.
pub(super) const MAX_SIZE: u64 = 2 * 1024 * 1024;

/// An attachment of a pod to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) container: String,
    /// False for the loopback interface, which runtimes attach apart from the network and at the same time.
    pub(super) network: bool,
    /// `NAMESPACE/NAME`, where Kubernetes asked for it.
    pub(super) pod: Option<String>,
    pub(super) annotations: Annotations,
    /// All namespaces that the note names: one, if it can be believed.
    pub(super) namespaces: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Annotations {
    /// The runtime hands none over.
    Absent,
    /// The pod is not of the mesh.
    NotOurs,
    /// Capture settings, as they stand there.
    Capture(String),
}

/// Why a note is passed over.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Broken {
    #[error("it is not of the form that libcni writes: {0}")]
    Form(String),
    #[error("it is of kind {0:?}, not cniCacheV1")]
    Kind(String),
    #[error("it speaks of another attachment than its name")]
    Name,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    netns: Option<String>,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    capability_args: Option<RuntimeConfig>,
    #[serde(default)]
    result: Option<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: Option<String>,
}

/// Reads the note in the file `name`.
pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Attachment, Broken> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Broken::Form("no JSON object".into())); // serde would also take a list, field by field
    }
    let note: Note = serde_json::from_slice(bytes).map_err(|error| Broken::Form(error.to_string()))?;
    if note.kind != "cniCacheV1" {
        return Err(Broken::Kind(note.kind.chars().take(32).collect()));
    }
    if format!("{}-{}-{}", note.network_name, note.container_id, note.if_name) != name {
        return Err(Broken::Name);
    }
    let arguments = note.cni_args.unwrap_or_default();
    let argument = |key: &str| arguments.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    let pod = match (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
        _ => None,
    };
    let annotations = match note.capability_args.and_then(|capabilities| capabilities.annotations) {
        None => Annotations::Absent,
        Some(mut all) => all.remove(CAPTURE_ANNOTATION).map_or(Annotations::NotOurs, Annotations::Capture),
    };
    let interfaces = note.result.and_then(|result| result.interfaces).unwrap_or_default();
    let mut namespaces: Vec<String> = match note.netns {
        Some(netns) => vec![netns],
        None => interfaces.into_iter().filter_map(|interface| interface.sandbox).collect(),
    };
    namespaces.retain(|namespace| !namespace.is_empty());
    namespaces.sort();
    namespaces.dedup();
    Ok(Attachment { container: note.container_id, network: note.if_name != "lo", pod, annotations, namespaces })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As libcni 1.1.2 and 1.3.0 wrote them for `cnitool add` with these plugins and arguments.
    const OLD: &str = include_str!("../../tests/cache/libcni-1.1.2-eth0.json");
    const OLD_LO: &str = include_str!("../../tests/cache/libcni-1.1.2-lo.json");
    const NEW: &str = include_str!("../../tests/cache/libcni-1.3.0-eth0.json");
    /// As containerd 1.6.20 wrote it for a pod that a kubelet 1.34 started.
    const CONTAINERD: &str = include_str!("../../tests/cache/containerd-1.6-eth0.json");
    const ID: &str = "cnitool-a4f9bf5a8a5900e269e9";

    #[test]
    fn as_libcni_writes_it() {
        for text in [OLD, NEW] {
            let want = Attachment {
                container: ID.into(),
                network: true,
                pod: Some("shop/catalog-1".into()),
                annotations: Annotations::Capture("{\"version\":1}".into()),
                namespaces: vec!["/var/run/netns/weir-gen-pod".into()],
            };
            assert_eq!(parse(&format!("pods-{ID}-eth0"), text.as_bytes()), Ok(want));
        }
        let id = "0ef42b2951ec913ee49467437832b5b18bccf61fcf51e29cdf47339c8277a590";
        let note = parse(&format!("cluster-{id}-eth0"), CONTAINERD.as_bytes()).unwrap();
        assert_eq!((note.pod.as_deref(), note.network, note.container.as_str()), (Some("default/before"), true, id));
        assert_eq!(note.annotations, Annotations::Capture("{\"version\":1}".into()));
        assert_eq!(note.namespaces, ["/var/run/netns/cni-14a7e467-d826-3383-757d-ee7ea28238f9"]);
        let lo = parse(&format!("cni-loopback-{ID}-lo"), OLD_LO.as_bytes()).unwrap();
        assert_eq!((lo.network, lo.namespaces.len()), (false, 1));
    }

    #[test]
    fn annotations_absent_null_and_of_others() {
        let with = |capabilities: &str| {
            let text =
                format!(r#"{{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n"{capabilities}}}"#);
            parse("n-c-eth0", text.as_bytes()).unwrap().annotations
        };
        assert_eq!(with(""), Annotations::Absent);
        assert_eq!(with(r#","capabilityArgs":null"#), Annotations::Absent);
        assert_eq!(with(r#","capabilityArgs":{"dns":{}}"#), Annotations::Absent);
        for not_ours in ["null", "{}", r#"{"a":"b"}"#] {
            let key = "io.kubernetes.cri.pod-annotations";
            assert_eq!(with(&format!(r#","capabilityArgs":{{"{key}":{not_ours}}}"#)), Annotations::NotOurs);
        }
    }

    #[test]
    fn what_is_not_believed() {
        assert_eq!(parse(&format!("pods-{ID}-eth1"), OLD.as_bytes()), Err(Broken::Name));
        let other = OLD.replace("cniCacheV1", "cniCacheV2");
        assert_eq!(parse(&format!("pods-{ID}-eth0"), other.as_bytes()), Err(Broken::Kind("cniCacheV2".into())));
        for bad in ["", "{", "[]", "null", r#"{"kind":"cniCacheV1"}"#, &OLD[..OLD.len() / 2], &"[".repeat(9999)] {
            assert!(matches!(parse("x", bad.as_bytes()), Err(Broken::Form(_))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, at in 0..1000usize, byte: u8) {
            let _ = parse("x", &bytes);
            let mut text = NEW.as_bytes().to_vec();
            text[at] = byte;
            let _ = parse(&format!("pods-{ID}-eth0"), &text);
        }
    }
}

//! The plugin's configuration, as the runtime writes it to standard input.
//!
//! Unknown fields are the runtime's and other plugins' business and are passed over; `prevResult` is kept as it came.

use std::{borrow::Cow, collections::BTreeMap, io::Read, path::PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use weir_mesh::names::CNI_ANNOTATIONS_CAPABILITY;

use crate::error::{CniError, Code};

/// Largest standard input that is read, in bytes: a pod's annotations are at most 256 KiB, the attachments of a large node
/// (for `GC`) a few hundred.
pub const MAX_STDIN: usize = 4 * 1024 * 1024;
/// Versions of the specification that are spoken, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", NEWEST];
/// The newest of [`VERSIONS`].
pub(crate) const NEWEST: &str = "1.1.0";
/// Where it is noted that something was said already, unless the configuration names another folder.
const STATE_DIR: &str = "/run/weir-cni";

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config<'a> {
    /// Version of the specification that the runtime and the chain agreed on.
    #[serde(borrow, default)]
    pub cni_version: Option<Cow<'a, str>>,
    /// What the plugins before us made of the pod's network, untouched.
    #[serde(borrow, default)]
    pub prev_result: Option<&'a RawValue>,
    /// Folder for the note that something was said already.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    #[serde(default)]
    runtime_config: Option<RuntimeConfig>,
}

/// What the runtime knows of the pod, by capability.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct RuntimeConfig {
    // The capability's name (weir_mesh::names::CNI_ANNOTATIONS_CAPABILITY; a test compares them).
    #[serde(rename = "io.kubernetes.cri.pod-annotations", default, deserialize_with = "present")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// A key that is there with `null` is a pod without annotations; only a missing key is a runtime that hands none over.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
}

/// Reads standard input, up to its limit.
pub(crate) fn read(stdin: impl Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_STDIN).unwrap_or(u64::MAX).saturating_add(1);
    stdin
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| CniError::new(Code::Io, "standard input can not be read", error.to_string()))?;
    if bytes.len() > MAX_STDIN {
        return Err(CniError::new(
            Code::Decode,
            "the network configuration is too large",
            format!("standard input has more than {MAX_STDIN} bytes"),
        ));
    }
    Ok(bytes)
}

impl<'a> Config<'a> {
    /// Parses the JSON form.
    ///
    /// # Errors
    /// Code 6 where it is no such JSON, 1 where its version is not known.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CniError> {
        let undecodable =
            |details: String| CniError::new(Code::Decode, "the network configuration can not be decoded", details);
        // serde would also take a list, field by field.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(undecodable("it is no JSON object".into()));
        }
        serde_json::from_slice(bytes).map_err(|error| undecodable(error.to_string()))
    }

    /// The version, if it is one that is spoken here.
    ///
    /// # Errors
    /// Code 1.
    pub fn version(&self) -> Result<&'static str, CniError> {
        let wanted = self.cni_version.as_deref().unwrap_or("(none)");
        VERSIONS.into_iter().find(|version| *version == wanted).ok_or_else(|| {
            CniError::new(
                Code::IncompatibleVersion,
                "incompatible CNI version",
                format!("cniVersion is {:?}; supported are {}", short(wanted), VERSIONS.join(", ")),
            )
        })
    }

    /// `prevResult`, which a chained plugin can not do without.
    ///
    /// # Errors
    /// Code 7.
    pub fn previous(&self) -> Result<&'a str, CniError> {
        match self.prev_result.map(RawValue::get) {
            Some(json) if json.starts_with('{') => Ok(json),
            _ => Err(CniError::new(
                Code::Config,
                "prevResult is missing",
                "weir-cni is a chained plugin: put it behind the plugin that makes the pod's interface, in the `plugins` \
                 of a .conflist file",
            )),
        }
    }

    /// The pod's annotations.
    ///
    /// # Errors
    /// [`NoAnnotations`] where the runtime hands none over.
    pub fn annotations(&self) -> Result<&BTreeMap<String, String>, NoAnnotations> {
        self.runtime_config.as_ref().and_then(|config| config.annotations.as_ref()).ok_or(NoAnnotations)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| STATE_DIR.into())
    }
}

/// The runtime hands no annotations over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the container runtime hands no pod annotations to CNI plugins, so mesh pods can not be told from others and none is \
     redirected on this node: use containerd 1.5 or later or CRI-O, and see that the plugin's entry has \
     \"capabilities\":{{\"{CNI_ANNOTATIONS_CAPABILITY}\":true}}"
)]
pub struct NoAnnotations;

fn short(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn annotations_absent_null_and_there() {
        let with = |runtime: &str| format!(r#"{{"cniVersion":"1.1.0","runtimeConfig":{runtime}}}"#);
        let absent = with("{}");
        assert_eq!(Config::parse(absent.as_bytes()).unwrap().annotations(), Err(NoAnnotations));
        assert_eq!(Config::parse(b"{}").unwrap().annotations(), Err(NoAnnotations));
        let null = with(&format!(r#"{{"{CNI_ANNOTATIONS_CAPABILITY}":null}}"#));
        assert!(Config::parse(null.as_bytes()).unwrap().annotations().unwrap().is_empty());
        let some = with(&format!(r#"{{"{CNI_ANNOTATIONS_CAPABILITY}":{{"a":"b"}},"portMappings":[]}}"#));
        assert_eq!(Config::parse(some.as_bytes()).unwrap().annotations().unwrap()["a"], "b");
    }

    #[test]
    fn the_previous_result_is_kept_byte_by_byte() {
        let previous = r#"{ "cniVersion":"1.0.0" ,"x":1e400,"ips":[], "x":2 }"#;
        let text = format!(r#"{{"cniVersion":"1.0.0","prevResult":{previous},"other":[1]}}"#);
        assert_eq!(Config::parse(text.as_bytes()).unwrap().previous().unwrap(), previous);
        for none in [r#"{"prevResult":null}"#, "{}", r#"{"prevResult":[]}"#, r#"{"prevResult":"x"}"#] {
            assert_eq!(Config::parse(none.as_bytes()).unwrap().previous().unwrap_err().code, Code::Config);
        }
    }

    #[test]
    fn versions_that_are_not_spoken() {
        for bad in [r#"{"cniVersion":"0.3.0"}"#, r#"{"cniVersion":"2.0.0"}"#, r#"{"cniVersion":""}"#, "{}"] {
            let error = Config::parse(bad.as_bytes()).unwrap().version().unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion);
        }
    }

    #[test]
    fn too_much_input_is_refused() {
        assert_eq!(read(std::io::repeat(b' ')).unwrap_err().code, Code::Decode);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(config) = Config::parse(&bytes) {
                let _ = (config.version().is_ok(), config.previous().is_ok(), config.annotations().is_ok());
            }
        }

        /// Well-formed configurations with damage in the middle reach deeper than noise.
        #[test]
        fn a_damaged_configuration_is_parsed_without_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = br#"{"cniVersion":"1.1.0","name":"n","type":"weir-cni","prevResult":{"ips":[{"address":"198.18.0.2/16"}]},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"weir.dev/capture":"{\"version\":1}"}}}"#.to_vec();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(config) = Config::parse(&bytes) {
                let _ = (config.version().is_ok(), config.previous().is_ok(), config.annotations().is_ok());
            }
        }
    }
}

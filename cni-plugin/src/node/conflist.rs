//! Our network configuration, made of the primary's: its chain as it stands, and our entry behind it.
//!
//! It keeps the primary's **name**, since address leases and the runtime's notes are filed under it. What it does not know it
//! keeps, byte by byte.

use std::path::Path;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};
use weir_mesh::names::CNI_ANNOTATIONS_CAPABILITY;

use crate::config::VERSIONS;

/// Type of our entry, which is also the plugin's file name.
pub(super) const PLUGIN: &str = "weir-cni";
/// Versions before [`VERSIONS`]: their results have no interfaces. Every plugin of the last ten years speaks a later one.
const OLD: [&str; 4] = ["", "0.1.0", "0.2.0", "0.3.0"];
/// What the old ones are raised to.
const OLDEST_SPOKEN: &str = "0.3.1";

/// Why a primary configuration can not be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("it is empty")]
    Empty,
    #[error("it is no JSON object: {0}")]
    Json(String),
    #[error("{0} is missing or no text")]
    Text(&'static str),
    #[error("plugins is missing, empty or no list of objects with a type")]
    Plugins,
    #[error(
        "it speaks CNI version {0:?}, this weir-cni only {known}: upgrade Weir before the network plugin",
        known = VERSIONS.join(", ")
    )]
    Version(String),
    #[error(
        "it holds a copy of Weir's own configuration: name the primary's file in the settings of the component that wrote \
         it (Multus: masterCNI)"
    )]
    CopyOfOurs,
}

/// An object whose fields keep their order and their bytes.
struct Object(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl Object {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let object: Self = serde_json::from_slice(bytes).map_err(|error| Malformed::Json(error.to_string()))?;
        Ok(object)
    }

    /// The last one wins, as the runtimes' parser has it.
    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, Malformed> {
        self.get(key).map(|value| serde_json::from_str(value.get()).map_err(|_| Malformed::Text(key))).transpose()
    }

    /// Sets a field where it stands, or in front if it is new.
    fn set(&mut self, key: &str, value: Box<RawValue>) {
        let at = self.0.iter().rposition(|(name, _)| name == key);
        match at.and_then(|at| self.0.get_mut(at)) {
            Some((_, old)) => *old = value,
            None => self.0.insert(0, (key.to_owned(), value)),
        }
    }
}

/// Makes our configuration of the primary's, which is a list (`.conflist`) or a single plugin's (`.conf`, `.json`).
pub(super) fn render(primary: &[u8], list: bool, state_dir: &Path) -> Result<Vec<u8>, Malformed> {
    if primary.trim_ascii().is_empty() {
        return Err(Malformed::Empty);
    }
    let object = Object::parse(primary)?;
    let mut object = if list { object } else { listed(object, primary)? };
    if object.text("name")?.is_none_or(|name| name.is_empty()) {
        return Err(Malformed::Text("name"));
    }
    negotiate(&mut object)?;
    let plugins: Vec<Box<RawValue>> =
        object.get("plugins").and_then(|plugins| serde_json::from_str(plugins.get()).ok()).ok_or(Malformed::Plugins)?;
    let mut chain = Vec::new();
    for plugin in plugins {
        match Object::parse(plugin.get().as_bytes()).ok().and_then(|plugin| plugin.text("type").ok().flatten()) {
            None => return Err(Malformed::Plugins),
            Some(kind) if kind.is_empty() => return Err(Malformed::Plugins),
            Some(kind) if kind == PLUGIN => {} // put there by hand; ours is written below
            Some(_) => chain.push(plugin),
        }
    }
    if chain.is_empty() {
        return Err(Malformed::Plugins);
    }
    if chain.iter().any(|plugin| plugin.get().contains("\"weir-cni\"")) {
        return Err(Malformed::CopyOfOurs);
    }
    Ok(text(&object, &chain, state_dir).into_bytes())
}

/// A single plugin's configuration as a list of one, as runtimes do it themselves.
fn listed(object: Object, bytes: &[u8]) -> Result<Object, Malformed> {
    if object.text("type")?.is_none_or(|kind| kind.is_empty()) {
        return Err(Malformed::Text("type"));
    }
    let whole: Box<RawValue> = serde_json::from_slice(bytes).map_err(|error| Malformed::Json(error.to_string()))?;
    let mut fields = Vec::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = object.get(key) {
            fields.push((key.to_owned(), value.to_owned()));
        }
    }
    fields.push(("plugins".to_owned(), raw(&[whole])));
    Ok(Object(fields))
}

/// The chain must speak a version that our plugin speaks too, or no pod of the node could start.
fn negotiate(object: &mut Object) -> Result<(), Malformed> {
    let single = object.text("cniVersion")?;
    let offered: Option<Vec<String>> = object
        .get("cniVersions")
        .map(|value| serde_json::from_str(value.get()).map_err(|_| Malformed::Text("cniVersions")))
        .transpose()?;
    let all: Vec<&str> = offered.iter().flatten().chain(&single).map(String::as_str).collect();
    let best = VERSIONS.into_iter().rev().find(|version| all.contains(version));
    let best = match (best, all.iter().find(|version| !OLD.contains(version))) {
        (Some(best), _) => best,
        (None, Some(unknown)) => return Err(Malformed::Version(unknown.chars().take(32).collect())),
        (None, None) => OLDEST_SPOKEN,
    };
    if offered.is_none() && single.as_deref() == Some(best) {
        return Ok(()); // not even its spelling changes
    }
    object.set("cniVersion", raw(best));
    if let Some(offered) = &offered {
        let spoken: Vec<&str> =
            offered.iter().map(String::as_str).filter(|version| VERSIONS.contains(version)).collect();
        object.set("cniVersions", raw(&spoken));
    }
    Ok(())
}

fn raw(value: &(impl serde::Serialize + ?Sized)) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_default() // plain texts and lists: this can not fail
}

/// One line for each field and each plugin, so that a person can compare it with the primary's.
fn text(object: &Object, chain: &[Box<RawValue>], state_dir: &Path) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (key, value) in object.0.iter().filter(|(key, _)| key != "plugins") {
        lines.push(format!("  {}: {}", raw(key), value.get().trim()));
    }
    let ours = format!(
        r#"{{"type": "{PLUGIN}", "capabilities": {{"{CNI_ANNOTATIONS_CAPABILITY}": true}}, "stateDir": {}}}"#,
        raw(&state_dir.to_string_lossy())
    );
    let plugins: Vec<String> = chain
        .iter()
        .map(|plugin| plugin.get().trim())
        .chain([ours.as_str()])
        .map(|plugin| format!("    {plugin}"))
        .collect();
    lines.push(format!("  \"plugins\": [\n{}\n  ]", plugins.join(",\n")));
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn list(text: &str) -> Result<Value, Malformed> {
        render(text.as_bytes(), true, Path::new("/s")).map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    fn ours() -> Value {
        json!({"type": "weir-cni", "capabilities": {"io.kubernetes.cri.pod-annotations": true}, "stateDir": "/s"})
    }

    #[test]
    fn a_copy_with_our_entry_and_the_primarys_name() {
        let made = list(
            r#"{"cniVersion":"1.0.0","name":"k8s","disableCheck":true,"plugins":[{"type":"ptp","x":[1]},{"type":"portmap"}]}"#,
        );
        let want = json!({"cniVersion": "1.0.0", "name": "k8s", "disableCheck": true,
            "plugins": [{"type": "ptp", "x": [1]}, {"type": "portmap"}, ours()]});
        assert_eq!(made.unwrap(), want);
    }

    #[test]
    fn what_is_not_known_keeps_its_bytes_and_its_order() {
        let made = render(
            br#"{"z":1e400,"name":"n","big":123456789012345678901234567890,"cniVersion":"0.4.0","a":{"b": 1,"b":2},
                "plugins":[{"type":"x","n":0.10,"u":"\u00e9"}]}"#,
            true,
            Path::new("/s"),
        );
        let made = String::from_utf8(made.unwrap()).unwrap();
        let at = |text: &str| made.find(text).unwrap_or_else(|| panic!("{text} is not in {made}"));
        assert!(at("\"z\": 1e400") < at("\"big\": 123456789012345678901234567890"), "{made}");
        assert!(at(r#"{"b": 1,"b":2}"#) < at(r#"{"type":"x","n":0.10,"u":"\u00e9"}"#), "{made}");
    }

    #[test]
    fn ours_stands_there_once() {
        let made = list(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"weir-cni","old":1},{"type":"ptp"}]}"#);
        assert_eq!(made.unwrap()["plugins"], json!([{"type": "ptp"}, ours()]));
        let nested = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"multus","delegates":[{"plugins":[{"type":"weir-cni"}]}]}]}"#;
        assert_eq!(list(nested), Err(Malformed::CopyOfOurs));
        assert_eq!(
            list(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"weir-cni"}]}"#),
            Err(Malformed::Plugins)
        );
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let text = r#"{"cniVersion":"0.3.1","name":"n","type":"bridge","ipam":{"type":"host-local"}}"#;
        let made: Value = serde_json::from_slice(&render(text.as_bytes(), false, Path::new("/s")).unwrap()).unwrap();
        let inner: Value = serde_json::from_str(text).unwrap();
        assert_eq!(made, json!({"cniVersion": "0.3.1", "name": "n", "plugins": [inner, ours()]}));
        assert_eq!(render(br#"{"name":"n","plugins":[]}"#, false, Path::new("/s")), Err(Malformed::Text("type")));
    }

    #[test]
    fn versions_are_ones_that_we_speak() {
        let with = |fields: &str| list(&format!(r#"{{"name":"n",{fields}"plugins":[{{"type":"ptp"}}]}}"#));
        for old in ["", r#""cniVersion":"","#, r#""cniVersion":"0.2.0","#, r#""cniVersion":"0.3.0","#] {
            assert_eq!(with(old).unwrap()["cniVersion"], "0.3.1", "{old}");
        }
        assert_eq!(with(r#""cniVersion":"1.1.0","#).unwrap()["cniVersion"], "1.1.0");
        assert_eq!(with(r#""cniVersion":"1.2.0","#), Err(Malformed::Version("1.2.0".into())));
        assert_eq!(with(r#""cniVersion":1,"#), Err(Malformed::Text("cniVersion")));
        let made = with(r#""cniVersion":"0.3.1","cniVersions":["1.0.0","1.2.0","0.2.0"],"#).unwrap();
        assert_eq!((&made["cniVersion"], &made["cniVersions"]), (&json!("1.0.0"), &json!(["1.0.0"])));
        assert_eq!(with(r#""cniVersions":["2.0.0"],"#), Err(Malformed::Version("2.0.0".into())));
    }

    #[test]
    fn malformed() {
        assert_eq!(list(" \n"), Err(Malformed::Empty));
        for bad in ["{", "[]", "null", "1", "{}x"] {
            assert!(matches!(list(bad), Err(Malformed::Json(_))), "{bad}");
        }
        for bad in [r#"{"plugins":[{"type":"a"}]}"#, r#"{"name":"","plugins":[{"type":"a"}]}"#, r#"{"name":1}"#] {
            assert_eq!(list(bad), Err(Malformed::Text("name")), "{bad}");
        }
        for bad in ["", r#","plugins":[]"#, r#","plugins":{}"#, r#","plugins":[1]"#, r#","plugins":[{}]"#] {
            assert_eq!(list(&format!(r#"{{"name":"n"{bad}}}"#)), Err(Malformed::Plugins), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, list: bool) {
            let _ = render(&bytes, list, Path::new("/s"));
        }

        #[test]
        fn whatever_it_makes_is_json_and_a_fixed_point(name in "[a-z\"\\\\é]{1,8}", kind in "[a-z]{1,8}", extra in any::<f64>()) {
            let text = json!({"name": name, "cniVersion": "1.0.0", "x": extra, "plugins": [{"type": kind}]}).to_string();
            let once = render(text.as_bytes(), true, Path::new("/s")).unwrap();
            prop_assert_eq!(&render(&once, true, Path::new("/s")).unwrap(), &once);
        }
    }
}

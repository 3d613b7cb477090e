//! What container runtimes and network plugins hand to the CNI plugin and the node agent.

use std::process::ExitCode;

use serde_json::Value;
use weir_cni::{Config, Environment, VERSIONS, node::fuzzing};
use weir_mesh::{CaptureSettings, names::CAPTURE_ANNOTATION};

use super::{JSON, text};
use crate::{Shape, Target, magnitude, none};

const WORDS: &[&[u8]] = &[
    b"\"cniVersion\":\"1.1.0\"",
    b"\"cniVersion\":\"0.2.0\"",
    b"\"cniVersions\":[\"1.0.0\",\"1.1.0\"]",
    b"\"name\":\"pods\"",
    b"\"plugins\":[",
    b"\"type\":\"ptp\"",
    b"\"type\":\"weir-cni\"",
    b"\"prevResult\":{\"ips\":[]}",
    b"\"runtimeConfig\":{\"io.kubernetes.cri.pod-annotations\":{",
    b"\"weir.dev/capture\":\"{}\"",
    b"\"weir.dev/capture\":\"{\\\"version\\\":1}\"",
    b"\"stateDir\":\"/nonexistent\"",
    b"\"../../etc\"",
    b"\\u0000",
    b"\\ud800",
    b"1e999",
    b"\"kind\":\"cniCacheV1\"",
    b"\"containerId\":\"c\"",
    b"\"ifName\":\"eth0\"",
    b"\"networkName\":\"n\"",
];

pub(super) const STDIN: Target = Target {
    name: "cni_stdin",
    holds: "what is no configuration is refused as the specification says; a pod that is not ours gets its previous result, unchanged",
    max_len: 4096,
    words: &[JSON, WORDS],
    seeds: none,
    run: stdin,
};

pub(super) const CONFLIST: Target = Target {
    name: "cni_conflist",
    holds: "our configuration is the primary's chain and name, field by field, with our entry last, in a version that both speak",
    max_len: 4096,
    words: &[JSON, WORDS],
    seeds: none,
    run: conflist,
};

pub(super) const NOTE: Target = Target {
    name: "cni_note",
    holds: "a runtime's note is believed under its own name only, and gives exactly the settings that stand in it",
    max_len: 4096,
    words: &[JSON, WORDS],
    seeds: none,
    run: note,
};

const COMMANDS: [&str; 5] = ["VERSION", "ADD", "DEL", "CHECK", "NONE"];

/// The first byte is the command, the rest standard input.
fn stdin(bytes: &[u8]) -> Shape {
    let (first, input) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
    let command = COMMANDS[usize::from(first) % COMMANDS.len()];
    let config = Config::parse(input).ok();
    let annotations = config.as_ref().and_then(|config| config.annotations().ok());
    // A runtime without annotations is noted in a folder that the configuration names: not one of this machine's.
    if command == "ADD" && config.is_some() && annotations.is_none() {
        return Shape::of("no annotations");
    }
    let ours = annotations.is_some_and(|annotations| annotations.contains_key(CAPTURE_ANNOTATION));
    let environment = Environment {
        command: Some(command.to_owned()),
        container: Some("c".into()),
        // Settings are read before the namespace is entered, and there is none.
        netns: Some("/nonexistent/weir-fuzz".into()),
        interface: Some("eth0".into()),
        arguments: Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b".into()),
    };
    let (mut out, mut log) = (Vec::new(), Vec::new());
    let code = weir_cni::run(&environment, input, &mut out, &mut log);
    let said: Option<Value> = serde_json::from_slice(&out).ok();
    let failed = format!("{code:?}") != format!("{:?}", ExitCode::SUCCESS);
    if failed {
        let Some(said) = &said else { panic!("an error that is no JSON: {}", text(&out)) };
        assert!(said["code"].as_u64().is_some() && said["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{said}");
        assert!(VERSIONS.iter().any(|version| said["cniVersion"] == *version), "{said}");
        return Shape::of((command, said["code"].as_u64()));
    }
    match command {
        "VERSION" => assert!(said.is_some_and(|said| said["supportedVersions"].is_array())),
        "ADD" => {
            assert!(!ours, "a namespace that is not there was entered");
            let previous = config.and_then(|config| config.previous().ok().map(str::to_owned)).unwrap_or_default();
            assert_eq!(text(&out).trim_end(), previous.trim_end(), "not the previous result");
        }
        "DEL" | "CHECK" => assert!(out.is_empty() || said.is_some()),
        other => panic!("{other} is carried out"),
    }
    Shape::of((command, ours, magnitude(out.len())))
}

fn fields(value: &Value) -> Vec<(&String, &Value)> {
    let own = ["plugins", "cniVersion", "cniVersions"];
    value.as_object().into_iter().flatten().filter(|(key, _)| !own.contains(&key.as_str())).collect()
}

fn conflist(bytes: &[u8]) -> Shape {
    let mut shapes = Vec::new();
    for list in [true, false] {
        let made = match fuzzing::conflist(bytes, list) {
            Err(reason) => {
                assert!(!reason.is_empty());
                shapes.push(reason.get(..12).map(str::to_owned));
                continue;
            }
            Ok(made) => made,
        };
        // Half a surrogate pair, or a number too large for us, is passed on: other readers take it.
        let Ok(primary) = serde_json::from_slice::<Value>(bytes) else { continue };
        let Ok(made) = serde_json::from_slice::<Value>(&made) else { panic!("no JSON: {}", text(&made)) };
        let last = made["plugins"].as_array().and_then(|plugins| plugins.last()).cloned().unwrap_or_default();
        assert_eq!(last["type"], "weir-cni");
        assert_eq!(last["capabilities"]["io.kubernetes.cri.pod-annotations"], true);
        assert!(VERSIONS.iter().any(|version| made["cniVersion"] == *version), "{made}");
        assert_eq!(made["name"], primary["name"]);
        assert!(made["name"].as_str().is_some_and(|name| !name.is_empty()));
        let own = &made["plugins"].as_array().map(|plugins| plugins[..plugins.len() - 1].to_vec()).unwrap_or_default();
        if list {
            let theirs = primary["plugins"].as_array().cloned().unwrap_or_default();
            let theirs: Vec<Value> = theirs.into_iter().filter(|plugin| plugin["type"] != "weir-cni").collect();
            assert_eq!(own, &theirs, "another chain");
            assert_eq!(fields(&made), fields(&primary), "another field");
        } else {
            assert_eq!(own, &vec![primary.clone()], "another plugin");
        }
        assert!(!own.is_empty());
        shapes.push(Some(format!("{}", magnitude(own.len()))));
    }
    Shape::of(shapes)
}

fn note(bytes: &[u8]) -> Shape {
    assert!(fuzzing::note("a note of another name that nobody has", bytes).is_err());
    match fuzzing::note("n-c-eth0", bytes) {
        Err(reason) => Shape::of(reason.get(..24).map(str::to_owned)),
        Ok((container, capture)) => {
            // What is not looked at may be malformed text.
            let Ok(note) = serde_json::from_slice::<Value>(bytes) else { return Shape::of("believed in part") };
            assert_eq!(note["containerId"], container);
            let noted = &note["capabilityArgs"]["io.kubernetes.cri.pod-annotations"][CAPTURE_ANNOTATION];
            assert_eq!(noted.as_str(), capture.as_deref());
            Shape::of((1, capture.map(|text| CaptureSettings::from_json(&text).is_ok())))
        }
    }
}

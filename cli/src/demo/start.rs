//! Part 1: what the webhook added, what it refused, and what the CNI plugin did.

use std::{fs, time::Duration};

use serde_json::Value;

use weir_sandbox::supervisor::protocol::Status;

use super::{Demo, Step, view};

/// File that holds a pod which the webhook refuses.
const REFUSED_FILE: &str = "refused.yaml";
const REFUSED_POD: &str = "Pod shop/refused";
/// Runs as the proxy's own user, whose traffic is not redirected: it would be outside of all rules.
const REFUSED: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: refused
  namespace: shop
spec:
  containers:
    - name: app
      image: host
      command: [sleep, infinity]
      securityContext:
        runAsUser: 1337
"#;
/// A line that makes the same a manifest which is not even read.
const BAD_ANNOTATION: (&str, &str) =
    ("  namespace: shop\n", "  namespace: shop\n  annotations:\n    weir.dev/opaque-ports: \"redis\"\n");

/// What happened to each pod on its way up.
pub(super) fn show(demo: &mut Demo) -> Step {
    view::title("1. What each pod got", "from the events of admission and of the CNI chain");
    let status = demo.client.status()?;
    let mut rows =
        vec![view::row(["POD", "ADDED BY THE WEBHOOK", "weir-cni WITH ITS START", "OF THAT ITS OWN", "RULES"])];
    let mut injected = 0;
    let mut slowest_us = 0;
    for name in status.pods.keys().filter(|name| !name.starts_with("weir-system/")) {
        let about = format!("Pod {name}");
        let said = |reason: &str, part: &str| {
            let mut events = status.events.iter().filter(|event| event.object == about && event.reason == reason);
            events.find(|event| event.message.contains(part)).map(|event| event.message.clone())
        };
        let added = said("Injected", "").unwrap_or_default();
        let added = added.trim_start_matches("the webhook added ").to_owned();
        let plugin = said("NetworkPlugin", "weir-cni took").unwrap_or_default();
        let took = plugin.split_once(" took ").and_then(|(_, rest)| rest.split(": ").next()).unwrap_or_default();
        let line: Value =
            plugin.split_once(": ").and_then(|(_, json)| serde_json::from_str(json).ok()).unwrap_or_default();
        let number = |field: &str| line.get(field).and_then(Value::as_u64);
        if added.is_empty() {
            rows.push(view::row([name, "nothing", took, "-", "none"]));
            continue;
        }
        injected += 1;
        let rules = number("rules").map_or_else(|| "-".to_owned(), |rules| rules.to_string());
        let own = number("elapsed_us");
        slowest_us = slowest_us.max(own.unwrap_or(0));
        rows.push(view::row([name, &added, took, &own.map_or_else(|| "-".to_owned(), view::ms), &rules]));
    }
    view::rows(&rows);
    demo.expect(injected == 5, &format!("{injected} pods of namespace shop were injected (wanted 5)"));
    demo.expect(slowest_us > 0, &format!("the CNI plugin's own time was at most {}", view::ms(slowest_us)));
    Ok(())
}

/// What is refused: a manifest with a bad annotation when it is read, a pod that would escape the mesh by the webhook.
pub(super) fn refusal(demo: &mut Demo) -> Step {
    let told = refused(demo);
    let removed = fs::remove_file(demo.folder.join(REFUSED_FILE));
    let (bad, escaping) = told?;
    say!("\n  a manifest with a bad annotation is not taken, and what runs goes on:");
    say!("    {bad}");
    say!("  a pod that runs as the proxy's user is refused by the webhook:");
    say!("    {escaping}");
    demo.expect(bad.contains("weir.dev/opaque-ports"), "the first refusal names file, object and field");
    demo.expect(escaping.contains("1337"), "the second one names the user");
    let gone = |status: &Status| (!status.pods.contains_key("shop/refused")).then_some(());
    demo.wait(Duration::from_secs(10), "the end of the refused pod", gone)?;
    demo.expect(removed.is_ok(), "their manifests are removed again");
    Ok(())
}

fn refused(demo: &Demo) -> Step<(String, String)> {
    let limit = Duration::from_secs(10);
    let event = |status: &Status, reason: &str, about: &str| {
        let mut events = status.events.iter().rev();
        let found = events.find(|event| event.reason == reason && event.object.starts_with(about));
        found.map(|event| event.message.clone())
    };
    demo.write(REFUSED_FILE, &REFUSED.replacen(BAD_ANNOTATION.0, BAD_ANNOTATION.1, 1))?;
    let bad = demo.wait(limit, "the refusal of a bad annotation", |status| event(status, "NotApplied", "Folder "))?;
    demo.write(REFUSED_FILE, REFUSED)?;
    let what = "the refusal of a pod that would escape";
    let escaping = demo.wait(limit, what, |status| event(status, "FailedCreate", REFUSED_POD))?;
    let bad = bad.split_once(": ").map_or(bad.clone(), |(_, reason)| reason.to_owned());
    Ok((bad.replace(&format!("{}/", demo.folder.display()), ""), escaping))
}

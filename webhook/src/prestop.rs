//! A pause between the end of a pod and the SIGTERM of its application.
//!
//! A server that is told to end closes its idle connections, and whatever request is on its way on one of them is lost: nobody can
//! know whether it was read, so nobody may send it again. The proxy beside it is told only when the application has ended. During
//! the pause nothing has changed for the application, and every caller has heard that the pod is no endpoint any more.
//! What a container has of its own is left alone: who has a `preStop` has thought of this.

use serde_json::json;

use crate::{
    edit::{Editor, get},
    refusal::Refusal,
    user::{List, UserPod},
};

/// Gives the pod's containers a `preStop` of so many seconds, where they have none. None at all where the pod has no more time than
/// that for its whole end.
pub(crate) fn pause(seconds: u32, user: &UserPod<'_>, editor: &mut Editor) -> Result<(), Refusal> {
    if seconds == 0 || seconds >= user.grace_seconds() {
        return Ok(());
    }
    for container in user.containers.iter().filter(|container| container.list == List::Main) {
        if get(container.raw, &["lifecycle", "preStop"]).is_none() {
            let place = ["spec", container.list.key(), &container.index.to_string(), "lifecycle", "preStop"];
            editor.set(&place, json!({"sleep": {"seconds": seconds}}))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{Settings, Verdict, inject_pod};

    fn injected(seconds: u32, pod: &Value) -> Value {
        let settings = Settings { pre_stop_seconds: seconds, ..Settings::default() };
        let outcome = inject_pod(&settings, pod, "shop").unwrap();
        let mut after = pod.clone();
        json_patch::patch(&mut after, &outcome.patch).unwrap();
        let again = inject_pod(&settings, &after, "shop").unwrap();
        assert_eq!(again.verdict, Verdict::Unchanged, "{}", again.patch);
        after
    }

    #[test]
    fn who_has_no_pause_gets_one_and_who_has_anything_keeps_it() {
        let pod = json!({"spec": {
            "initContainers": [{"name": "first"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [
                {"name": "none"},
                {"name": "empty", "lifecycle": null},
                {"name": "start", "lifecycle": {"postStart": {"exec": {"command": ["a"]}}}},
                {"name": "own", "lifecycle": {"preStop": {"exec": {"command": ["b"]}}}},
            ],
        }});
        let after = injected(1, &pod);
        let hooks: Vec<&Value> =
            after["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["lifecycle"]["preStop"]).collect();
        let pause = json!({"sleep": {"seconds": 1}});
        assert_eq!(hooks, [&pause, &pause, &pause, &json!({"exec": {"command": ["b"]}})]);
        assert_eq!(after["spec"]["containers"][2]["lifecycle"]["postStart"], json!({"exec": {"command": ["a"]}}));
        let sides = after["spec"]["initContainers"].as_array().unwrap();
        assert!(sides.iter().filter(|c| c["name"] != "weir-proxy").all(|c| c.get("lifecycle").is_none()));
    }

    #[test]
    fn no_pause_where_it_would_be_all_the_time_there_is() {
        let pod =
            |grace: u32| json!({"spec": {"terminationGracePeriodSeconds": grace, "containers": [{"name": "app"}]}});
        for (seconds, grace, paused) in [(0, 30, false), (1, 0, false), (1, 1, false), (1, 2, true), (30, 30, false)] {
            let after = injected(seconds, &pod(grace));
            assert_eq!(after["spec"]["containers"][0].get("lifecycle").is_some(), paused, "{seconds} of {grace}");
        }
    }
}

//! What the Deployment and ReplicaSet controllers do: which pods to make and which to end, one step at a time.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::util::{spell, suffix};

/// Label with the hash of the template.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Letters of a template's hash.
const HASH_LETTERS: usize = 10;

/// A Deployment, as far as it decides about pods.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Number of pods.
    pub replicas: usize,
    /// The pod template, raw.
    pub template: Value,
    /// Hash of the template.
    pub hash: String,
    /// How pods are replaced.
    pub strategy: Strategy,
}

/// How pods are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// End all, then start.
    Recreate,
    /// At most so many more than wanted, at most so many fewer available.
    Rolling {
        /// Most pods above the wanted number.
        surge: usize,
        /// Most pods below it.
        unavailable: usize,
    },
}

/// What of a pod decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Have {
    /// Made from the present template.
    pub current: bool,
    /// Ready.
    pub ready: bool,
    /// When it was made, seconds since 1970.
    pub created: u64,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// Pods to make.
    pub create: usize,
    /// Pods to end, by their place in the list.
    pub end: Vec<usize>,
}

/// Reads a Deployment's raw form.
pub fn wanted(namespace: &str, name: &str, raw: &Value) -> Wanted {
    let replicas = raw.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
    let template = raw.pointer("/spec/template").cloned().unwrap_or_default();
    let digest = Sha256::digest(template.to_string());
    let hash = spell(digest.get(..HASH_LETTERS).unwrap_or_default());
    let recreate = raw.pointer("/spec/strategy/type").and_then(Value::as_str) == Some("Recreate");
    let share = |field: &str, up: bool| {
        let value = raw.pointer(&format!("/spec/strategy/rollingUpdate/{field}"));
        let percent = match value {
            Some(Value::Number(number)) => return usize::try_from(number.as_u64().unwrap_or(0)).unwrap_or(0),
            Some(Value::String(text)) => text.trim_end_matches('%').parse().unwrap_or(25),
            _ => 25_usize,
        };
        let of = replicas.saturating_mul(percent);
        if up { of.div_ceil(100) } else { of / 100 }
    };
    let (surge, unavailable) = (share("maxSurge", true), share("maxUnavailable", false));
    let strategy = if recreate {
        Strategy::Recreate
    } else {
        // Both zero would never get anywhere; Kubernetes refuses that.
        Strategy::Rolling { surge: if unavailable == 0 { surge.max(1) } else { surge }, unavailable }
    };
    Wanted { namespace: namespace.into(), name: name.into(), replicas, template, hash, strategy }
}

/// The next step from the pods that are there and not on their way down.
pub fn step(wanted: &Wanted, have: &[Have]) -> Step {
    let indexed = || have.iter().enumerate();
    let current = indexed().filter(|(_, pod)| pod.current).count();
    let old = have.len().saturating_sub(current);
    let mut step = Step::default();
    if current > wanted.replicas {
        let mut candidates: Vec<(usize, &Have)> = indexed().filter(|(_, pod)| pod.current).collect();
        // First those that are of no use yet, then the youngest.
        candidates.sort_by_key(|(_, pod)| (pod.ready, std::cmp::Reverse(pod.created)));
        let too_many = current.saturating_sub(wanted.replicas);
        step.end.extend(candidates.into_iter().take(too_many).map(|(i, _)| i));
    }
    match wanted.strategy {
        Strategy::Recreate => {
            if old > 0 {
                step.end.extend(indexed().filter(|(_, pod)| !pod.current).map(|(i, _)| i));
            } else {
                step.create = wanted.replicas.saturating_sub(current);
            }
        }
        Strategy::Rolling { surge, unavailable } => {
            let most = wanted.replicas.saturating_add(surge);
            let room = most.saturating_sub(have.len());
            step.create = wanted.replicas.saturating_sub(current).min(room);
            // Old pods that are not ready serve nobody; ready ones go as far as enough others are ready.
            let ready = have.iter().filter(|pod| pod.ready).count();
            let mut spare = ready.saturating_sub(wanted.replicas.saturating_sub(unavailable));
            for (i, pod) in indexed().filter(|(_, pod)| !pod.current) {
                if !pod.ready {
                    step.end.push(i);
                } else if spare > 0 {
                    spare -= 1;
                    step.end.push(i);
                }
            }
        }
    }
    step
}

/// A new pod of a Deployment: its name and its object.
pub fn pod(wanted: &Wanted) -> (String, Value) {
    let set = format!("{}-{}", wanted.name, wanted.hash);
    let name = format!("{set}-{}", suffix());
    let mut metadata = wanted.template.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut labels = metadata.get("labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.insert(HASH_LABEL.into(), json!(wanted.hash));
    metadata.insert("labels".into(), Value::Object(labels));
    metadata.insert("name".into(), json!(name));
    metadata.insert("generateName".into(), json!(format!("{set}-")));
    metadata.insert(
        "ownerReferences".into(),
        json!([{
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": set,
            "uid": "",
            "controller": true,
            "blockOwnerDeletion": true,
        }]),
    );
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": wanted.template.get("spec").cloned().unwrap_or_default(),
    });
    super::defaults::pod(&mut object);
    (name, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: usize, strategy: Strategy) -> Wanted {
        Wanted { strategy, ..wanted("n", "d", &json!({"spec": {"replicas": replicas, "template": {"spec": {}}}})) }
    }

    fn pods(list: &[(bool, bool)]) -> Vec<Have> {
        list.iter()
            .zip(0..)
            .map(|((current, ready), created)| Have { current: *current, ready: *ready, created })
            .collect()
    }

    const ROLLING: Strategy = Strategy::Rolling { surge: 1, unavailable: 0 };

    #[test]
    fn scaling() {
        let three = deployment(3, ROLLING);
        assert_eq!(step(&three, &[]), Step { create: 3, end: vec![] });
        let down = step(&deployment(1, ROLLING), &pods(&[(true, true), (true, false), (true, true)]));
        assert_eq!(down, Step { create: 0, end: vec![1, 2] });
    }

    #[test]
    fn a_rolling_change_never_has_fewer_ready_pods_than_wanted() {
        let two = deployment(2, ROLLING);
        assert_eq!(step(&two, &pods(&[(false, true), (false, true)])), Step { create: 1, end: vec![] });
        let waiting = pods(&[(false, true), (false, true), (true, false)]);
        assert_eq!(step(&two, &waiting), Step::default());
        let one_up = pods(&[(false, true), (false, true), (true, true)]);
        assert_eq!(step(&two, &one_up), Step { create: 0, end: vec![0] });
        assert_eq!(step(&two, &pods(&[(false, true), (true, true)])), Step { create: 1, end: vec![] });
        assert_eq!(step(&two, &pods(&[(false, false), (false, true)])), Step { create: 1, end: vec![0] });
    }

    #[test]
    fn recreate_ends_all_first() {
        let two = deployment(2, Strategy::Recreate);
        assert_eq!(step(&two, &pods(&[(false, true), (false, true)])), Step { create: 0, end: vec![0, 1] });
        assert_eq!(step(&two, &[]), Step { create: 2, end: vec![] });
    }

    #[test]
    fn a_template_change_changes_the_hash_and_a_scale_does_not() {
        let raw = |replicas: u32, image: &str| json!({"spec": {"replicas": replicas, "template": {"spec": {"containers": [{"image": image}]}}}});
        let hash = |raw: &Value| wanted("n", "d", raw).hash;
        assert_eq!(hash(&raw(1, "a")), hash(&raw(5, "a")));
        assert_ne!(hash(&raw(1, "a")), hash(&raw(1, "b")));
        let (name, pod) = pod(&wanted("n", "d", &raw(1, "a")));
        assert!(name.starts_with(&format!("d-{}-", hash(&raw(1, "a")))));
        assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "ReplicaSet");
    }
}

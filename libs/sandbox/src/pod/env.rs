//! A container's environment: values, fields of the pod, ConfigMap keys, and `$(NAME)`.

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod};

use super::fields;

/// Where programs are looked for when the container says nothing.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why an environment can not be made.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A source is not offered or lacks something.
    #[error("environment variable {name}: {reason}")]
    Source {
        /// Name of the variable.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// The whole environment of a container, in order; a later definition of a name replaces an earlier one.
///
/// # Errors
/// The first variable without a value.
pub fn build(
    pod: &Pod,
    container: &Container,
    uid: u32,
    config_map: &dyn Fn(&str) -> Option<ConfigMap>,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env: Vec<(String, String)> = Vec::new();
    set(&mut env, "PATH", PATH.to_owned());
    set(&mut env, "HOSTNAME", pod.metadata.name.clone().unwrap_or_default());
    set(&mut env, "HOME", if uid == 0 { "/root" } else { "/" }.to_owned());
    for from in container.env_from.iter().flatten() {
        let Some(map) = &from.config_map_ref else {
            return Err(EnvError::Source { name: "envFrom".into(), reason: "only configMapRef is offered".into() });
        };
        let prefix = from.prefix.clone().unwrap_or_default();
        match config_map(&map.name) {
            Some(found) => {
                for (key, value) in found.data.unwrap_or_default() {
                    set(&mut env, &format!("{prefix}{key}"), value);
                }
            }
            None if map.optional == Some(true) => {}
            None => {
                let reason = format!("ConfigMap {} does not exist", map.name);
                return Err(EnvError::Source { name: "envFrom".into(), reason });
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = one(pod, variable, &env, config_map)? {
            set(&mut env, &variable.name, value);
        }
    }
    Ok(env)
}

fn one(
    pod: &Pod,
    variable: &EnvVar,
    env: &[(String, String)],
    config_map: &dyn Fn(&str) -> Option<ConfigMap>,
) -> Result<Option<String>, EnvError> {
    let failed = |reason: String| EnvError::Source { name: variable.name.clone(), reason };
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), env)));
    };
    if let Some(field) = &source.field_ref {
        return fields::value(pod, &field.field_path).map(Some).map_err(|error| failed(error.to_string()));
    }
    if let Some(key) = &source.config_map_key_ref {
        let value = config_map(&key.name).and_then(|map| map.data?.remove(&key.key));
        return match value {
            Some(value) => Ok(Some(value)),
            None if key.optional == Some(true) => Ok(None),
            None => Err(failed(format!("key {} of ConfigMap {} does not exist", key.key, key.name))),
        };
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_field(pod, resource).map(Some).map_err(failed);
    }
    Err(failed("only value, fieldRef, resourceFieldRef and configMapKeyRef are offered".into()))
}

/// Requests and limits by name. Without a limit the kubelet gives the node's capacity; here that is the machine's.
fn resource_field(pod: &Pod, wanted: &k8s_openapi::api::core::v1::ResourceFieldSelector) -> Result<String, String> {
    let (kind, resource) =
        wanted.resource.split_once('.').ok_or_else(|| format!("{:?} is no resource", wanted.resource))?;
    let spec = pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let container = containers
        .into_iter()
        .find(|container| Some(&container.name) == wanted.container_name.as_ref())
        .or_else(|| spec.and_then(|spec| spec.containers.first()));
    let resources = container.and_then(|container| container.resources.clone()).unwrap_or_default();
    let list = if kind == "limits" { resources.limits } else { resources.requests };
    let quantity = list.and_then(|mut list| list.remove(resource));
    match (resource, quantity) {
        ("cpu", Some(quantity)) => {
            let text = quantity.0;
            let millis = text.strip_suffix('m').and_then(|text| text.parse::<f64>().ok());
            let cores = millis.map_or_else(|| text.parse::<f64>().ok(), |millis| Some(millis / 1000.0));
            cores.map(|cores| format!("{:.0}", cores.ceil())).ok_or_else(|| format!("{text:?} is no quantity"))
        }
        ("cpu", None) => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string()),
        (_, Some(quantity)) => Ok(quantity.0),
        (_, None) => Ok("0".into()),
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(have, _)| have == name) {
        Some((_, have)) => *have = value,
        None => env.push((name.to_owned(), value)),
    }
}

/// Replaces `$(NAME)` by the value of a variable defined before; `$$` stands for `$`; unknown names stay as they are.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let known = from.strip_prefix("$(").and_then(|inner| {
            let (name, after) = inner.split_once(')')?;
            let (_, value) = env.iter().find(|(have, _)| have == name)?;
            Some((value, after))
        });
        rest = if let Some(after) = from.strip_prefix("$$") {
            out.push('$');
            after
        } else if let Some((value, after)) = known {
            out.push_str(value);
            after
        } else {
            out.push('$');
            from.get(1..).unwrap_or_default()
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_as_kubernetes_does_it() {
        let env = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, wanted) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$$(A)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("a$b", "a$b"),
        ] {
            assert_eq!(expand(text, &env), wanted, "{text}");
        }
    }
}

//! The fields of a kind, as its definition has them.

use anyhow::{Context as _, bail};
use serde_json::Value as Json;

/// Paths of all fields of `spec` that hold a value, in the order of their names: `spec.rules[].matches[].path.value`. Each value of an
/// enumeration is a field of its own: `spec.rules[].matches[].path.type=Exact`. A map with free keys is one field.
///
/// # Errors
/// Where the text is no CustomResourceDefinition, has no such version, or has what is not understood.
pub fn fields(definition: &str, version: &str) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    walk(&spec(definition, version)?, "spec", &mut all)?;
    Ok(all)
}

/// The schema of a kind's `spec`.
pub(crate) fn spec(definition: &str, version: &str) -> anyhow::Result<Json> {
    let definition: Json = serde_saphyr::from_str(definition)?;
    let versions = definition.pointer("/spec/versions").and_then(Json::as_array);
    let version = versions
        .and_then(|versions| versions.iter().find(|known| known.get("name") == Some(&version.into())))
        .with_context(|| format!("no version {version}"))?;
    version.pointer("/schema/openAPIV3Schema/properties/spec").cloned().context("no schema of spec")
}

fn walk(schema: &Json, path: &str, all: &mut Vec<String>) -> anyhow::Result<()> {
    match (schema.get("type").and_then(Json::as_str), schema.get("properties").and_then(Json::as_object)) {
        (Some("object"), Some(properties)) => {
            for (name, schema) in properties {
                walk(schema, &format!("{path}.{name}"), all)?;
            }
        }
        (Some("array"), _) => walk(schema.get("items").context("a list of nothing")?, &format!("{path}[]"), all)?,
        (Some(_), _) => match schema.get("enum").and_then(Json::as_array) {
            Some(values) => all.extend(values.iter().map(|value| format!("{path}={}", plain(value)))),
            None => all.push(path.to_owned()),
        },
        (None, _) => bail!("{path} has no type"),
    }
    Ok(())
}

fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

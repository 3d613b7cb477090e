//! The user's folder of manifests: read strictly, whole or not at all.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;
use weir_config::{Manifest, Object, Problem};

use super::families;

/// Why a folder of manifests is not taken.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder or a file can not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder has no manifests.
    #[error("{}: has no .yaml, .yml or .json file", .0.display())]
    Empty(PathBuf),
    /// Something in the manifests is wrong; each problem names file, object and field.
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Kind, namespace (empty for cluster-wide kinds) and name.
pub type Key = (String, String, String);

/// The folder's objects, typed and raw.
pub type Objects = BTreeMap<Key, Manifest>;

/// Reads all manifests of a folder (or one file), checks each and all together.
///
/// # Errors
/// [`LoadError`], with every problem at once.
pub fn load(path: &Path, ipv6: bool) -> Result<Objects, LoadError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| LoadError::Io { path, source }
    };
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(io(path))? {
            let file = entry.map_err(io(path))?.path();
            let manifest = file.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
            let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if manifest && !hidden && file.is_file() {
                files.push(file);
            }
        }
        files.sort();
    } else {
        fs::metadata(path).map_err(io(path))?;
        files.push(path.to_path_buf());
    }
    if files.is_empty() {
        return Err(LoadError::Empty(path.to_path_buf()));
    }
    let mut manifests = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(io(&file))?;
        match weir_config::parse(&file.display().to_string(), &text) {
            Ok(found) => manifests.extend(found),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        problems.extend(weir_config::validate(&manifests));
    }
    problems.extend(manifests.iter().filter_map(|manifest| refused(manifest, ipv6)));
    if !problems.is_empty() {
        return Err(LoadError::Problems(problems));
    }
    Ok(manifests.into_iter().map(|manifest| (key(&manifest.object), manifest)).collect())
}

/// Kinds that the mesh reads but the sandbox does not run, and Services that its API server would refuse: better said than ignored.
fn refused(manifest: &Manifest, ipv6: bool) -> Option<Problem> {
    let reason = match &manifest.object {
        Object::StatefulSet(_) => "is not run by the sandbox: use a Deployment or a Pod",
        Object::Node(_) => "is not run by the sandbox, which is one node",
        Object::Service(service) => {
            let spec = service.spec.clone().unwrap_or_default();
            let (field, reason) = families::of(&spec, ipv6).err()?;
            return Some(manifest.problem(weir_config::FieldPath::of("spec").key(field), &reason));
        }
        Object::EndpointSlice(_) => "is made by the sandbox itself, from the Services and the ready pods",
        _ => return None,
    };
    Some(manifest.problem(weir_config::FieldPath::root(), reason))
}

/// The key of an object.
pub fn key(object: &Object) -> Key {
    let reference = object.reference();
    (reference.kind, reference.namespace, reference.name)
}

/// The raw form with the namespace that an API server would have written.
pub fn raw(manifest: &Manifest) -> Value {
    let mut raw = manifest.raw.clone();
    let namespace = manifest.object.metadata().namespace.clone();
    if let (Some(namespace), Some(metadata)) = (namespace, raw.get_mut("metadata").and_then(Value::as_object_mut)) {
        metadata.insert("namespace".into(), Value::String(namespace));
    }
    raw
}

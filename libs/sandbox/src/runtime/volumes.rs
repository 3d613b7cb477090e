//! A pod's volumes as folders of the machine, and how their content changes under a running container.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapProjection, ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, Pod, Volume,
    VolumeProjection,
};

use crate::{
    api::tokens::{Subject, TokenIssuer},
    pod::fields,
};

/// Mode of a file where the volume says nothing.
const DEFAULT_MODE: i32 = 0o644;
/// Life of a projected token where the volume says nothing, in seconds.
const DEFAULT_TOKEN_SECONDS: i64 = 3600;
/// Shortest life of a token that Kubernetes grants, in seconds.
pub const MIN_TOKEN_SECONDS: i64 = 600;

/// Why a volume can not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something it needs does not exist, yet.
    #[error("volume {volume}: {what} does not exist")]
    Missing {
        /// Name of the volume.
        volume: String,
        /// What is missing.
        what: String,
    },
    /// The sandbox has no such volumes.
    #[error(
        "volume {0}: the sandbox has emptyDir, configMap, projected, downwardAPI and hostPath volumes only (use one of these here)"
    )]
    Unsupported(String),
    /// A field or a path that can not be.
    #[error("volume {volume}: {reason}")]
    Invalid {
        /// Name of the volume.
        volume: String,
        /// What is wrong.
        reason: String,
    },
    /// The file system said no.
    #[error("volume {volume}: {source}")]
    Io {
        /// Name of the volume.
        volume: String,
        /// What it said.
        source: io::Error,
    },
}

/// Where the content of volumes comes from.
pub struct Sources<'a> {
    /// The pod, with its addresses in the status.
    pub pod: &'a Pod,
    /// ConfigMap of the pod's namespace by name.
    pub config_map: &'a dyn Fn(&str) -> Option<ConfigMap>,
    /// Signs projected tokens.
    pub tokens: &'a TokenIssuer,
    /// Tokens written before, by audience: kept until they have lived long enough.
    pub kept: &'a mut BTreeMap<String, KeptToken>,
    /// Seconds since 1970.
    pub now: u64,
}

/// A token that was written into a volume.
#[derive(Debug, Clone)]
pub struct KeptToken {
    text: String,
    renew_at: u64,
}

type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// Brings all volumes of a pod up to date below `folder`. Gives the folder or file of the machine for each volume.
///
/// # Errors
/// The first volume that can not be; those before it are done.
pub fn refresh(folder: &Path, sources: &mut Sources<'_>) -> Result<BTreeMap<String, PathBuf>, VolumeError> {
    let volumes = sources.pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
    let group = sources
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref()?.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    let mut done = BTreeMap::new();
    for volume in volumes {
        let name = volume.name.clone();
        let path = one(&folder.join(&name), &volume, group, sources)?;
        done.insert(name, path);
    }
    Ok(done)
}

fn one(path: &Path, volume: &Volume, group: Option<u32>, sources: &mut Sources<'_>) -> Result<PathBuf, VolumeError> {
    let name = volume.name.as_str();
    let io = |source| VolumeError::Io { volume: name.to_owned(), source };
    if let Some(host) = &volume.host_path {
        return host_path(name, Path::new(&host.path), host.type_.as_deref().unwrap_or_default());
    }
    if volume.empty_dir.is_some() {
        if !path.exists() {
            fs::create_dir_all(path).map_err(io)?;
            // As the kubelet does: whoever the containers run as can write; a group given by the pod owns it.
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(io)?;
            if group.is_some() {
                chown(path, None, group).map_err(io)?;
            }
        }
        return Ok(path.to_path_buf());
    }
    let mut files = Files::new();
    if let Some(map) = &volume.config_map {
        config_map(name, map, &mut files, sources)?;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(DEFAULT_MODE);
        self::downward(name, downward.items.as_deref().unwrap_or_default(), mode, &mut files, sources)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for source in projected.sources.iter().flatten() {
            projection(name, source, mode, &mut files, sources)?;
        }
    } else {
        return Err(VolumeError::Unsupported(name.to_owned()));
    }
    for relative in files.keys() {
        let bad = relative.is_empty()
            || relative.starts_with('/')
            || relative.starts_with("..")
            || relative.split('/').any(|part| part == "..");
        if bad {
            let reason = format!("{relative:?} is not a path inside the volume");
            return Err(VolumeError::Invalid { volume: name.to_owned(), reason });
        }
    }
    publish(path, &files, group).map_err(io)?;
    Ok(path.to_path_buf())
}

fn host_path(name: &str, path: &Path, kind: &str) -> Result<PathBuf, VolumeError> {
    let missing = || VolumeError::Missing { volume: name.to_owned(), what: path.display().to_string() };
    match kind {
        "DirectoryOrCreate" => {
            fs::create_dir_all(path).map_err(|source| VolumeError::Io { volume: name.to_owned(), source })?;
        }
        "Directory" if !path.is_dir() => return Err(missing()),
        "File" if !path.is_file() => return Err(missing()),
        _ if !path.exists() => return Err(missing()),
        _ => {}
    }
    Ok(path.to_path_buf())
}

fn config_map(
    volume: &str,
    source: &ConfigMapVolumeSource,
    files: &mut Files,
    sources: &Sources<'_>,
) -> Result<(), VolumeError> {
    let projection =
        ConfigMapProjection { name: source.name.clone(), items: source.items.clone(), optional: source.optional };
    add_config_map(volume, &projection, source.default_mode.unwrap_or(DEFAULT_MODE), files, sources)
}

fn add_config_map(
    volume: &str,
    source: &ConfigMapProjection,
    mode: i32,
    files: &mut Files,
    sources: &Sources<'_>,
) -> Result<(), VolumeError> {
    let optional = source.optional == Some(true);
    let missing = |what: String| VolumeError::Missing { volume: volume.to_owned(), what };
    let Some(map) = (sources.config_map)(&source.name) else {
        return if optional { Ok(()) } else { Err(missing(format!("ConfigMap {}", source.name))) };
    };
    let mut content: BTreeMap<String, Vec<u8>> =
        map.data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
    content.extend(map.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)));
    let Some(items) = &source.items else {
        files.extend(content.into_iter().map(|(key, bytes)| (key, (bytes, permissions(mode)))));
        return Ok(());
    };
    for KeyToPath { key, mode: own, path } in items {
        match content.get(key) {
            Some(bytes) => {
                files.insert(path.clone(), (bytes.clone(), permissions(own.unwrap_or(mode))));
            }
            None if optional => {}
            None => return Err(missing(format!("key {key} of ConfigMap {}", source.name))),
        }
    }
    Ok(())
}

fn downward(
    volume: &str,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    files: &mut Files,
    sources: &Sources<'_>,
) -> Result<(), VolumeError> {
    for item in items {
        let invalid = |reason: String| VolumeError::Invalid { volume: volume.to_owned(), reason };
        let field = item
            .field_ref
            .as_ref()
            .ok_or_else(|| invalid(format!("{}: only fieldRef is offered here, no resourceFieldRef", item.path)))?;
        let text = fields::value(sources.pod, &field.field_path).map_err(|error| invalid(error.to_string()))?;
        files.insert(item.path.clone(), (text.into_bytes(), permissions(item.mode.unwrap_or(mode))));
    }
    Ok(())
}

fn projection(
    volume: &str,
    source: &VolumeProjection,
    mode: i32,
    files: &mut Files,
    sources: &mut Sources<'_>,
) -> Result<(), VolumeError> {
    if let Some(map) = &source.config_map {
        return add_config_map(volume, map, mode, files, sources);
    }
    if let Some(downward) = &source.downward_api {
        return self::downward(volume, downward.items.as_deref().unwrap_or_default(), mode, files, sources);
    }
    let Some(token) = &source.service_account_token else {
        return Err(VolumeError::Unsupported(volume.to_owned()));
    };
    let audience = token.audience.clone().unwrap_or_default();
    let seconds = token.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS).max(MIN_TOKEN_SECONDS);
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let subject = Subject::of(sources.pod);
    let key = format!("{volume}/{audience}/{seconds}");
    let fresh = sources.kept.get(&key).filter(|kept| sources.now < kept.renew_at).cloned();
    let kept = match fresh {
        Some(kept) => kept,
        None => {
            let text = sources
                .tokens
                .sign(&subject, &audience, seconds, sources.now)
                .map_err(|error| VolumeError::Invalid { volume: volume.to_owned(), reason: error.to_string() })?;
            // The kubelet renews at four fifths of the life.
            KeptToken { text, renew_at: sources.now.saturating_add(seconds / 5 * 4) }
        }
    };
    files.insert(token.path.clone(), (kept.text.clone().into_bytes(), permissions(mode)));
    sources.kept.insert(key, kept);
    Ok(())
}

fn permissions(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// Replaces the content of a volume in one step, as the kubelet does: the files lie in a folder of their own, `..data` points at
/// it, and every name of the volume is a link through `..data`. A reader sees all of the old content or all of the new.
fn publish(path: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    const CURRENT: &str = "..data";
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    let current = path.join(CURRENT);
    let before = fs::read_link(&current).ok();
    if let Some(before) = &before
        && same(&path.join(before), files)
    {
        return Ok(());
    }
    let folder = format!("..{}", crate::util::uuid());
    let made = path.join(&folder);
    fs::create_dir(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o755))?;
    for (relative, (content, mode)) in files {
        let file = made.join(relative);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, content)?;
        let mode = if group.is_some() { mode | mode >> 3 & 0o070 | 0o040 } else { *mode };
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        if group.is_some() {
            chown(&file, None, group)?;
        }
    }
    let next = path.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&folder, &next)?;
    fs::rename(&next, &current)?;
    let top = |relative: &String| relative.split('/').next().unwrap_or_default().to_owned();
    let wanted: std::collections::BTreeSet<String> = files.keys().map(top).collect();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(path.join(name.as_ref()))?;
        }
    }
    for name in &wanted {
        let link = path.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(CURRENT).join(name), &link)?;
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(path.join(before))?;
    }
    Ok(())
}

fn same(folder: &Path, files: &Files) -> bool {
    files.iter().all(|(relative, (content, _))| fs::read(folder.join(relative)).is_ok_and(|have| have == *content))
        && count(folder) == files.len()
}

fn count(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_in_one_step_and_old_names_go() {
        let path = std::env::temp_dir().join(format!("weir-volume-{}", std::process::id()));
        let files = |names: &[(&str, &str)]| -> Files {
            names.iter().map(|(name, text)| ((*name).to_owned(), (text.as_bytes().to_vec(), 0o644))).collect()
        };
        publish(&path, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        let first = fs::read_link(path.join("..data")).unwrap();
        publish(&path, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(path.join("..data")).unwrap(), first, "the same content is not written again");
        assert_eq!(fs::read_to_string(path.join("sub/b")).unwrap(), "2");
        publish(&path, &files(&[("a", "3")]), None).unwrap();
        let (a, sub, old) = (fs::read_to_string(path.join("a")), path.join("sub").exists(), path.join(first).exists());
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(a.unwrap(), "3");
        assert!(!sub && !old);
    }

    #[test]
    fn a_token_is_renewed_well_before_it_expires() {
        let folder = std::env::temp_dir().join(format!("weir-token-{}", std::process::id()));
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "weir-control", "path": "token", "expirationSeconds": 600}},
            ]}}]},
        }))
        .unwrap();
        let issuer = TokenIssuer::new().unwrap();
        let mut kept = BTreeMap::new();
        let mut at = |now| {
            let config_map = |_: &str| None;
            let mut sources = Sources { pod: &pod, config_map: &config_map, tokens: &issuer, kept: &mut kept, now };
            refresh(&folder, &mut sources).unwrap();
            fs::read_to_string(folder.join("t/token")).unwrap()
        };
        let (first, still, renewed) = (at(1000), at(1479), at(1480));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(first, still);
        assert_ne!(first, renewed);
    }

    #[test]
    fn what_is_missing_is_waited_for_and_what_can_not_be_is_named() {
        let issuer = TokenIssuer::new().unwrap();
        let fails = |volume: serde_json::Value| {
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"spec": {"containers": [], "volumes": [volume]}})).unwrap();
            let config_map = |_: &str| None;
            let mut kept = BTreeMap::new();
            let mut sources = Sources { pod: &pod, config_map: &config_map, tokens: &issuer, kept: &mut kept, now: 0 };
            refresh(Path::new("/nonexistent"), &mut sources).unwrap_err()
        };
        let missing = fails(serde_json::json!({"name": "v", "configMap": {"name": "absent"}}));
        assert!(matches!(&missing, VolumeError::Missing { .. }) && missing.to_string().contains("ConfigMap absent"));
        let unsupported = fails(serde_json::json!({"name": "v", "nfs": {"server": "s", "path": "/"}}));
        assert!(matches!(unsupported, VolumeError::Unsupported(_)));
    }
}

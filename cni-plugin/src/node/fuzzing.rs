//! A narrow door for the fuzz targets: what the agent makes of files that others write.

use std::path::Path;

use super::{cache, conflist};

/// Our network configuration, made of a primary's.
///
/// # Errors
/// Why it can not be used.
pub fn conflist(primary: &[u8], list: bool) -> Result<Vec<u8>, String> {
    conflist::render(primary, list, Path::new("/run/weir-cni")).map_err(|error| error.to_string())
}

/// What a runtime's note in the file `name` says of an attachment: its container, and the capture settings if there are some.
///
/// # Errors
/// Why it is passed over.
pub fn note(name: &str, bytes: &[u8]) -> Result<(String, Option<String>), String> {
    let attachment = cache::parse(name, bytes).map_err(|error| error.to_string())?;
    let capture = match attachment.annotations {
        cache::Annotations::Capture(text) => Some(text),
        cache::Annotations::Absent | cache::Annotations::NotOurs => None,
    };
    Ok((attachment.container, capture))
}

//! Says something once for each start of the node, though every pod starts a new process: an empty file in a folder of `/run`
//! (which a restart empties) is created by whoever says it. Where the file can not be created it is said again: too often
//! is better than never.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// True for the first caller with this name.
pub(crate) fn first(folder: &Path, name: &str) -> bool {
    let _ = DirBuilder::new().mode(0o700).create(folder); // if it is not there now, creating the file says so
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name)) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::AlreadyExists,
    }
}

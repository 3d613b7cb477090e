//! Takes everything back, on every way out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use weir_sandbox::{
    Layout,
    launch::{self, LaunchError},
};

/// What is to be taken back.
pub(super) struct Cleanup {
    layout: Layout,
    folder: PathBuf,
    armed: bool,
}

impl Cleanup {
    /// The sandbox, and the folder that the demo copied the example to.
    pub(super) fn new(layout: &Layout, folder: &Path) -> Self {
        Self { layout: layout.clone(), folder: folder.to_path_buf(), armed: true }
    }

    /// Leaves all as it is; `weir sandbox down` removes it.
    pub(super) fn keep(&mut self) {
        self.armed = false;
    }

    /// Takes it back now; whether nothing is left then.
    pub(super) fn now(&mut self) -> Result<bool, LaunchError> {
        self.armed = false;
        let result = launch::down(&self.layout).map(|_| ());
        let _ = fs::remove_dir_all(&self.folder);
        result?;
        Ok(!self.layout.root().exists() && !self.folder.exists())
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.now()
        {
            complain!("weir: {error}");
        }
    }
}

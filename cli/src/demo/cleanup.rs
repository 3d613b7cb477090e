//! Takes the sandbox down, on every way out.

use weir_sandbox::{
    Layout,
    launch::{self, LaunchError},
};

/// What is to be taken back.
pub(super) struct Cleanup {
    layout: Layout,
    armed: bool,
}

impl Cleanup {
    /// A sandbox that this process has started.
    pub(super) fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone(), armed: true }
    }

    /// Leaves all as it is; `weir sandbox down` removes it.
    pub(super) fn keep(&mut self) {
        self.armed = false;
    }

    /// Takes it back now; whether nothing is left then.
    pub(super) fn now(&mut self) -> Result<bool, LaunchError> {
        self.armed = false;
        launch::down(&self.layout)?;
        Ok(!self.layout.root().exists())
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

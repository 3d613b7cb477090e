//! What an image name stands for on this machine.

use std::path::{Path, PathBuf};

use crate::runtime::spec::{Mount, OWN_PATH};

/// Name of the image that is any program of the machine.
pub const HOST: &str = "host";
/// Hidden subcommand of `weir` behind the image `weir.dev/echo`.
pub const ECHO_COMMAND: &str = "sandbox-echo";

/// Images that are one of our own programs: image name, program, its path in the container.
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("weir.dev/proxy", "weir-proxy", "/weir-proxy"),
    ("weir.dev/init", "weir-init", "/weir-init"),
    ("weir.dev/control", "weir-control", "/weir-control"),
    ("weir.dev/webhook", "weir-webhook", "/weir-webhook"),
];
const ECHO: &str = "weir.dev/echo";

/// Why an image can not be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing stands behind the name.
    #[error(
        "image {0:?} is not known: the sandbox runs programs of this machine and pulls nothing. Known are `host` (any \
         program of this machine; needs `command`), `weir.dev/echo` (an HTTP server that answers with what it got) and \
         Weir's own `weir.dev/proxy`, `weir.dev/init`, `weir.dev/control`, `weir.dev/webhook`"
    )]
    Unknown(String),
    /// `host` without a command.
    #[error("image `host` stands for any program of this machine: say which one by `command`")]
    NoCommand,
    /// The program is not built or not installed.
    #[error("image {image}: {} does not exist; build it, or name its folder by --bin-dir", path.display())]
    Missing {
        /// Image.
        image: String,
        /// Where the program should be.
        path: PathBuf,
    },
}

/// What runs for an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// What runs where the container names no command.
    pub entrypoint: Vec<String>,
    /// Files that the image brings: (on the machine, in the container).
    pub files: Vec<(PathBuf, PathBuf)>,
}

impl Image {
    /// The image's files as read-only mounts.
    pub fn mounts(&self) -> impl Iterator<Item = Mount> {
        self.files.iter().map(|(source, target)| Mount {
            source: source.clone(),
            target: target.clone(),
            read_only: true,
        })
    }
}

/// Resolves images.
#[derive(Debug, Clone)]
pub struct Images {
    bin_dir: PathBuf,
}

impl Images {
    /// Images whose programs are in `bin_dir`.
    pub fn new(bin_dir: &Path) -> Self {
        Self { bin_dir: bin_dir.to_path_buf() }
    }

    /// What stands behind an image; tag and digest do not matter.
    ///
    /// # Errors
    /// [`ImageError`] lists what exists.
    pub fn resolve(&self, image: &str, has_command: bool) -> Result<Image, ImageError> {
        let name = image.split('@').next().unwrap_or_default();
        // A colon before the last slash belongs to a registry's port.
        let name = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => name,
            _ => name,
        };
        if name == HOST {
            return if has_command { Ok(Image::default()) } else { Err(ImageError::NoCommand) };
        }
        if name == ECHO {
            return Ok(Image { entrypoint: vec![OWN_PATH.into(), ECHO_COMMAND.into()], files: Vec::new() });
        }
        let (_, program, target) =
            PROGRAMS.iter().find(|(known, ..)| *known == name).ok_or_else(|| ImageError::Unknown(image.to_owned()))?;
        let path = self.bin_dir.join(program);
        if !path.is_file() {
            return Err(ImageError::Missing { image: image.to_owned(), path });
        }
        Ok(Image { entrypoint: vec![(*target).to_owned()], files: vec![(path, PathBuf::from(target))] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let images = Images::new(Path::new("/nowhere"));
        assert!(images.resolve("host", true).is_ok());
        assert!(matches!(images.resolve("host", false), Err(ImageError::NoCommand)));
        assert!(images.resolve("weir.dev/echo:1.0", false).is_ok());
        assert!(images.resolve("weir.dev/echo@sha256:00", false).is_ok());
        assert!(matches!(images.resolve("weir.dev/proxy:dev", false), Err(ImageError::Missing { .. })));
        for unknown in ["nginx:1.27", "localhost:5000/host", "weir.dev/echoes"] {
            let error = images.resolve(unknown, true).unwrap_err();
            assert!(error.to_string().contains("weir.dev/echo"), "{error}");
        }
    }
}

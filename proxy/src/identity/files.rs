//! The two files of the pod: its token and the mesh's roots.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

/// Longest token, in bytes.
const MAX_TOKEN: u64 = 16 * 1024;
/// Longest file of roots, in bytes: a ConfigMap holds no more.
const MAX_ROOTS: u64 = 1024 * 1024;

/// Why a file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can not be read.
    #[error("{} can not be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(content(path, "is too long"));
    }
    Ok(bytes)
}

fn content(path: &Path, problem: &'static str) -> FileError {
    FileError::Content { path: path.to_owned(), problem }
}

/// The token, fit to stand in a header.
pub(super) fn token(path: &Path) -> Result<String, FileError> {
    let bytes = read(path, MAX_TOKEN)?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(content(path, "is empty"));
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(content(path, "is not a token: it has characters that no token has"));
    }
    String::from_utf8(token.to_vec()).map_err(|_| content(path, "is not a token"))
}

/// The roots as last read.
#[derive(Default)]
pub(super) struct Roots {
    /// As the file has them.
    pub(super) pem: Vec<u8>,
    /// Parsed.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    failure: Option<FileError>,
}

impl Roots {
    /// Reads the file; true where its contents changed. A file that is not usable leaves the roots as they were.
    ///
    /// Contents are compared, not times: a kubelet swaps a link, and a clock may stand still.
    pub(super) fn follow(&mut self, path: &Path) -> Result<bool, String> {
        match Self::parse(path) {
            Ok((pem, _)) if pem == self.pem => {
                self.failure = None;
                Ok(false)
            }
            Ok((pem, certificates)) => {
                *self = Self { pem, certificates, failure: None };
                Ok(true)
            }
            Err(error) => {
                let text = error.to_string();
                self.failure = Some(error);
                Err(text)
            }
        }
    }

    fn parse(path: &Path) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>), FileError> {
        let pem = read(path, MAX_ROOTS)?;
        let certificates = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| content(path, "is not PEM"))?;
        if certificates.is_empty() {
            return Err(content(path, "has no certificate"));
        }
        Ok((pem, certificates))
    }

    /// Fails where there never were any.
    pub(super) fn required(&mut self) -> Result<(), FileError> {
        if self.certificates.is_empty() { Err(self.failure.take().unwrap_or_else(missing)) } else { Ok(()) }
    }
}

fn missing() -> FileError {
    content(Path::new("the file of root certificates"), "was not read yet")
}

//! Logs of containers: what they write, as files with a size cap.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Size at which a log is put aside and a new one begun; one old log is kept.
pub const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;

/// A container's log, over its restarts.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    written: u64,
}

impl Log {
    /// Opens the log, at its end.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self { path, open: Arc::new(Mutex::new(Open { file, written })) })
    }

    /// Adds to the log.
    pub fn write(&self, bytes: &[u8]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.written >= MAX_LOG_BYTES {
            let _ = fs::rename(&self.path, old(&self.path));
            if let Ok(file) = OpenOptions::new().create(true).append(true).open(&self.path) {
                *open = Open { file, written: 0 };
            }
        }
        // A full disk must not stop the container; what is lost is the log.
        if open.file.write_all(bytes).is_ok() {
            open.written = open.written.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
    }

    /// Copies all that comes out of `from`, until its end.
    pub async fn copy(self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n) = from.read(&mut buffer).await {
            let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
            self.write(bytes);
        }
    }
}

fn old(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// The last lines of a log, at most `lines`.
pub fn tail(path: &Path, lines: usize) -> String {
    const AT_MOST: u64 = 64 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(AT_MOST)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stays_below_its_cap() {
        let path = std::env::temp_dir().join(format!("weir-log-{}/c.log", std::process::id()));
        let log = Log::open(path.clone()).unwrap();
        let chunk = vec![b'x'; 1024 * 1024];
        for _ in 0..40 {
            log.write(&chunk);
        }
        log.write(b"\nlast\nline\n");
        let (now, before) = (fs::metadata(&path).unwrap().len(), fs::metadata(old(&path)).unwrap().len());
        let end = tail(&path, 2);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(now <= MAX_LOG_BYTES + 1024 * 1024 && before <= MAX_LOG_BYTES + 1024 * 1024);
        assert_eq!(end, "last\nline");
    }
}

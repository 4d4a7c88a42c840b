//! Tells when the files of a snapshot may have changed.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Changes that follow each other this closely are one: who writes several files writes them one after the other.
const PAUSE: Duration = Duration::from_millis(100);
/// However restless the files are, they are read after this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// Files and folders that are watched.
pub(super) struct Watch {
    /// Ends the watching when it goes.
    _watcher: RecommendedWatcher,
    changes: Receiver<()>,
}

impl Watch {
    /// Watches folders with everything below, and files by the folder that they are in: most programs replace a file.
    pub(super) fn new(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let (sender, changes) = channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reading changes nothing; an error may hide a change.
            if event.map_or(true, |event| !event.kind.is_access()) {
                let _nobody_waits = sender.send(());
            }
        })
        .context("cannot watch files")?;
        for path in paths {
            ensure!(path.as_os_str() != "-", "stdin cannot be watched\n  try: -f FILE");
            let (place, mode) = match path.parent() {
                _ if path.is_dir() => (path.as_path(), RecursiveMode::Recursive),
                Some(folder) if !folder.as_os_str().is_empty() => (folder, RecursiveMode::NonRecursive),
                _ => (Path::new("."), RecursiveMode::NonRecursive),
            };
            watcher.watch(place, mode).with_context(|| format!("cannot watch {}", place.display()))?;
        }
        Ok(Self { _watcher: watcher, changes })
    }

    /// Waits until something has changed and come to rest; tells whether it did within `timeout`.
    pub(super) fn changed(&self, timeout: Duration) -> bool {
        if self.changes.recv_timeout(timeout).is_err() {
            return false;
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE && self.changes.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {}
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_replaced_or_removed_has_changed_and_one_that_is_read_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("a.yaml"), folder.path().join("b.new"));
        std::fs::write(&file, "a").unwrap();
        let watch = Watch::new(std::slice::from_ref(&file)).unwrap();
        let soon = || watch.changed(Duration::from_millis(500));
        std::fs::read(&file).unwrap();
        assert!(!soon());
        std::fs::write(&file, "b").unwrap();
        assert!(soon());
        std::fs::write(&other, "c").unwrap();
        std::fs::rename(&other, &file).unwrap();
        assert!(soon());
        std::fs::remove_file(&file).unwrap();
        assert!(soon() && !soon());
        assert!(Watch::new(&["-".into()]).is_err());
    }
}

//! A state directory, as operators and tests look into it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A state directory of its own for each test.
pub(crate) struct StateDir(tempfile::TempDir);

impl StateDir {
    pub(crate) fn new() -> Self {
        // tempfile makes it 0700 and ours, which is what the product asks for.
        Self(tempfile::Builder::new().prefix("quarantine-test").tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// As an argument.
    pub(crate) fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    /// `isolated/<key>`, its directory made where it is not there yet.
    pub(crate) fn mark_path(&self, key: &str) -> PathBuf {
        let directory = self.path().join("isolated");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
        directory.join(key)
    }

    /// Writes a mark in place, as an operator would.
    pub(crate) fn mark(&self, key: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.mark_path(key), text).unwrap();
    }

    /// Moves a mark into its place, so that nobody sees half of it.
    pub(crate) fn move_mark(&self, key: &str, text: impl AsRef<[u8]>) {
        let mark = self.mark_path(key);
        let temporary = mark.with_file_name(".mark");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(&temporary, &mark).unwrap();
    }

    pub(crate) fn remove_mark(&self, key: &str) {
        std::fs::remove_file(self.mark_path(key)).unwrap();
    }

    /// The names in `isolated/`, sorted.
    pub(crate) fn marks(&self) -> Vec<String> {
        tree(&self.path().join("isolated"))
    }

    /// What lies under `attachments/`, directories too, sorted.
    pub(crate) fn records(&self) -> Vec<String> {
        tree(&self.path().join("attachments"))
    }

    /// Where ADD writes the record of an attachment.
    pub(crate) fn record_path(&self, container: &str, ifname: &str) -> PathBuf {
        self.path().join("attachments").join(container).join(format!("{ifname}.json"))
    }
}

/// What a directory holds, recursively, relative, sorted; nothing when it is not there.
pub(crate) fn tree(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(at) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten() {
            names.push(entry.path().strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

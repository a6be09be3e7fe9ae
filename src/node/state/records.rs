//! Attachment records, as ADD writes them and DEL removes them.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, SystemTime};

use crate::model::fault::Fault;
use crate::model::names::{AttachmentId, ContainerId, IfName};
use crate::model::record::Record;
use crate::model::records::SandboxRecords;

use super::{FILE_MAX, StateDir, StateError, create_private, failed, names_in};
use crate::node::files::{Durability, names_starting_with_dot, read_regular, replace};

/// How old a change of a directory is by whose time a later one can be told from it.
const SETTLED_AFTER: Duration = Duration::from_millis(500);

/// A record that cannot be read.
#[derive(Debug)]
pub struct DamagedRecord {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: Fault,
}

impl StateDir {
    /// The container IDs that have records.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn sandboxes(&self) -> Result<Vec<ContainerId>, StateError> {
        Ok(names_in(&self.attachments())?.iter().filter_map(|name| ContainerId::new(name).ok()).collect())
    }

    /// Since when no sandbox was added or taken away, by the time of their directory: as long as that is the same, so are they.
    /// `None` where it cannot be told, or was so lately that the next change may get the same time: the kernel's clock for it
    /// goes on by the tick, up to 10 ms.
    #[must_use]
    pub fn sandboxes_unchanged_since(&self) -> Option<SystemTime> {
        let changed = fs::metadata(self.attachments()).and_then(|metadata| metadata.modified()).ok()?;
        let elapsed = SystemTime::now().duration_since(changed).ok()?;
        (elapsed > SETTLED_AFTER).then_some(changed)
    }

    /// The records of a sandbox, where any can be read, and those that cannot.
    #[must_use]
    pub fn records_of(&self, container_id: &ContainerId) -> (Option<SandboxRecords>, Vec<DamagedRecord>) {
        let directory = self.attachments().join(container_id.as_str());
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for name in names_in(&directory).unwrap_or_default() {
            if !name.ends_with(".json") {
                continue;
            }
            let path = directory.join(&name);
            match read_regular(&path, FILE_MAX) {
                Ok(content) => match Record::read(&content) {
                    Ok(record) if record.container_id() == container_id => records.push(record),
                    Ok(_) => damaged.push(DamagedRecord { path, fault: Fault::Misplaced }),
                    Err(fault) => damaged.push(DamagedRecord { path, fault }),
                },
                // Gone in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => damaged.push(DamagedRecord { path, fault: Fault::Unreadable(error.to_string()) }),
            }
        }
        (SandboxRecords::new(records), damaged)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write_record(&self, record: &Record) -> Result<(), StateError> {
        let directory = self.attachments().join(record.container_id().as_str());
        create_private(&directory)?;
        let path = directory.join(record_name(&record.id.ifname));
        let temporary = directory.join(format!(".{}.{}", record.id.ifname, process::id()));
        replace(&path, &temporary, record.to_json().as_bytes(), Durability::UntilReboot, |_| Ok(()))
            .map_err(failed("write the record", &path))?;
        self.index_pods([(record.container_id(), &record.pod)]);
        Ok(())
    }

    /// Removes the record of an attachment, and the sandbox's directory with its last one.
    ///
    /// # Errors
    /// [`StateError::Io`]; not where it is gone already.
    pub fn remove_record(&self, attachment: &AttachmentId) -> Result<(), StateError> {
        let directory = self.attachments().join(attachment.container_id.as_str());
        let path = directory.join(record_name(&attachment.ifname));
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove the record", &path)(error)),
        }
        // What an ADD that was killed left behind.
        for name in names_starting_with_dot(&directory) {
            let _ = fs::remove_file(directory.join(name));
        }
        let removed = fs::remove_dir(&directory);
        if removed.is_ok() {
            // Its netns ends, and with it what is to be put back in there.
            let _ = fs::remove_file(self.patience().join(format!("{}.json", attachment.container_id)));
            self.remove_index_behind_last();
        }
        match removed {
            // Another attachment is left, or it is gone.
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(failed("remove", &directory)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Where the record of an interface is in its sandbox's directory.
fn record_name(ifname: &IfName) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec([ifname.as_bytes(), b".json"].concat())
}

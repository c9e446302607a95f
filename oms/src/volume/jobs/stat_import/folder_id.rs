//! The identity of a folder with statistics files, for clusters in which each node has such a
//! folder.
//!
//! Files of different folders may have the same name, and each of them must be added. So a file is
//! identified by the id of its folder and its name. The id is stored in the folder, in the file
//! `stat_files.id`. Another node that uses the folder later, or shares it, uses the same id.
//!
//! **Invariants**
//! - An id is durable before any file is added under it.
//! - One process at a time scans a folder: the one that holds the lock of the id's file.
//!
//! Deliberately absent: protection against a copy of a whole folder on another machine. Such a copy
//! has the same id, so a file of the copy is not added if a file of the same name was added from
//! the original folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read, Result, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::runtime;

/// Name of the file with the id.
const FILE: &str = "stat_files.id";
/// Maximum length of an id in bytes: a node's name, a minus sign and 16 hexadecimal digits.
const ID_BYTES_MAX: usize = 63 + 1 + 16;

/// The id of a folder that only this process scans.
#[derive(Debug)]
pub(crate) struct FolderId {
    id: String,
    /// The open file with the id, which keeps the folder locked.
    _file: File,
}

impl FolderId {
    /// Locks a folder and reads its id. A folder without an id gets one that begins with the node's
    /// name. Returns `None` if another process has locked the folder.
    pub(crate) fn claim(folder: &Path, node: &str) -> Result<Option<FolderId>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(folder.join(FILE))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut text = String::new();
        let limit = ID_BYTES_MAX as u64 + 2;
        Read::by_ref(&mut file).take(limit).read_to_string(&mut text)?;
        // If the line break is missing, the file is new, or the process that wrote the id died
        // before it had finished. In both cases no file was added under an id, so a new id is
        // written.
        let id = match text.strip_suffix('\n') {
            Some(id) if is_id(id) => id.to_owned(),
            None if text.len() <= ID_BYTES_MAX => {
                let id = format!("{node}-{:016x}", runtime::random_u64());
                file.rewind()?;
                file.set_len(0)?;
                file.write_all(format!("{id}\n").as_bytes())?;
                file.sync_all()?;
                File::open(folder)?.sync_all()?;
                id
            }
            _ => return Err(Error::new(ErrorKind::InvalidData, "stat_files.id holds no id")),
        };
        Ok(Some(FolderId { id, _file: file }))
    }

    /// Returns the id.
    pub(crate) fn as_str(&self) -> &str {
        &self.id
    }
}

/// Returns `true` if a text can be the id of a folder.
pub(crate) fn is_id(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= ID_BYTES_MAX && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_id_and_one_process_at_a_time_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderId::claim(folder.path(), "ada").unwrap().unwrap();
        assert!(first.as_str().starts_with("ada-"), "{first:?}");
        assert!(FolderId::claim(folder.path(), "bob").unwrap().is_none());
        let id = first.as_str().to_owned();
        drop(first);
        let second = FolderId::claim(folder.path(), "bob").unwrap().unwrap();
        assert_eq!(second.as_str(), id);
        let other = tempfile::tempdir().unwrap();
        let other = FolderId::claim(other.path(), "ada").unwrap().unwrap();
        assert_ne!(other.as_str(), id);
    }

    #[test]
    fn an_id_that_was_written_in_part_is_replaced_and_a_strange_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for torn in ["", "ada-0123"] {
            std::fs::write(&path, torn).unwrap();
            let claimed = FolderId::claim(folder.path(), "ada").unwrap().unwrap();
            assert_eq!(claimed.as_str().len(), "ada-".len() + 16);
            drop(claimed);
            std::fs::remove_file(&path).unwrap();
        }
        for strange in [
            "a/b\n",
            "\n",
            "a b\n",
            &format!("{}\n", "x".repeat(ID_BYTES_MAX + 1)),
            &"x".repeat(1_000),
        ] {
            std::fs::write(&path, strange).unwrap();
            assert!(FolderId::claim(folder.path(), "ada").is_err(), "{strange:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), strange);
        }
    }
}

//! The operations on the data folder that the scan for statistics files needs. The functions that
//! take a path may block on the disk.
//!
//! **Invariants**
//! - Other programs may write into this folder at any time. So a file is read or deleted only if
//!   its `Stamp` is unchanged.
//! - A file that is set aside (renamed to `NAME.rejected`) gets a name that no other file has.

use std::fs::Metadata;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;

use crate::runtime::regular_file;
use crate::volume::jobs::stat_import::name;

/// Maximum size of a statistics file in bytes. A usual file has 10,000 lines and 70 KB.
pub(crate) const FILE_BYTES_MAX: u64 = 64 * 1_024 * 1_024;
/// Maximum number of new names that are tried when `set_aside` renames a file.
const ASIDE_NAMES_MAX: u32 = 1_000;

/// The identity of a file and the version of its content. If two stamps are equal, nothing was
/// written to the file between the times at which the stamps were taken, as far as the clock of the
/// file system can tell these times apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    pub(crate) bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(about: &Metadata) -> Stamp {
        Stamp {
            device: about.dev(),
            inode: about.ino(),
            bytes: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

/// An entry of the folder with the name of a statistics file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// The file's stamp. For an entry that is not a regular file, the name of its type.
    pub(crate) kind: std::result::Result<Stamp, &'static str>,
}

/// Lists the entries with the name of a statistics file, oldest name first.
pub(crate) fn look(folder: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name::stamp_of(&name).is_none() {
            continue;
        }
        match std::fs::symlink_metadata(entry.path()) {
            Ok(about) if about.is_file() => found.push(Found {
                name,
                kind: Ok(Stamp::of(&about)),
            }),
            Ok(about) => found.push(Found {
                name,
                kind: Err(regular_file::name_of(about.file_type())),
            }),
            // The entry was removed after the folder was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The outcome of reading a file.
pub(crate) enum Content {
    /// The bytes of the whole file.
    Whole(Vec<u8>),
    /// The file is empty, or its last line does not end with a line break.
    Unfinished,
    /// The file was changed or replaced after its stamp was taken.
    Changed,
}

/// Reads a file if its stamp is still `stamp`.
pub(crate) fn read(path: &Path, stamp: &Stamp) -> Result<Content> {
    let file = regular_file::open_no_follow(path)?;
    if Stamp::of(&file.metadata()?) != *stamp {
        return Ok(Content::Changed);
    }
    let bytes = regular_file::read_bounded(&file, FILE_BYTES_MAX)?;
    if Stamp::of(&file.metadata()?) != *stamp || bytes.len() as u64 != stamp.bytes {
        return Ok(Content::Changed);
    }
    Ok(match bytes.last() {
        Some(b'\n') => Content::Whole(bytes),
        _ => Content::Unfinished,
    })
}

/// Deletes a file that was added to the statistics. Returns `true` if the file was deleted or no
/// longer existed. Returns `false` without deleting if the file's stamp is no longer `stamp`.
pub(crate) fn delete(path: &Path, stamp: &Stamp) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
        Ok(about) if Stamp::of(&about) != *stamp => return Ok(false),
        Ok(_) => {}
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

/// Renames an entry on a file system without `NOREPLACE`. A file gets a hard link with the new
/// name, because a hard link never replaces a file. A crash before the old name is removed leaves
/// both names, and the next scan sets the old name aside again.
fn rename_by_link(path: &Path, aside: &Path) -> rustix::io::Result<()> {
    // Without flags, `linkat` links a symbolic link itself, not its target.
    match rustix::fs::linkat(CWD, path, CWD, aside, AtFlags::empty()) {
        Ok(()) => rustix::fs::unlink(path),
        // A folder has no hard links, and its rename replaces no file. The final slash makes the
        // rename fail if the entry is no folder.
        Err(Errno::PERM) => rustix::fs::rename(path.join(""), aside).map_err(|error| match error {
            Errno::NOTDIR => Errno::PERM,
            error => error,
        }),
        Err(error) => Err(error),
    }
}

/// Renames an entry of any type to `NAME.rejected`, or to `NAME.rejected.2` and so on if that name
/// is taken. Replaces no file that existed before this call.
pub(crate) fn set_aside(path: &Path) -> Result<PathBuf> {
    for number in 1..=ASIDE_NAMES_MAX {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".rejected");
        if number > 1 {
            aside.push(format!(".{number}"));
        }
        let aside = PathBuf::from(aside);
        if std::fs::symlink_metadata(&aside).is_ok() {
            continue;
        }
        let renamed = match rustix::fs::renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE) {
            // The file system or the kernel does not support `NOREPLACE`.
            Err(Errno::INVAL | Errno::NOSYS) => rename_by_link(path, &aside),
            renamed => renamed,
        };
        match renamed {
            Ok(()) => return Ok(aside),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::other("too many files of this name were set aside before"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test calls the fallback itself, because the file system of the tests has `NOREPLACE`.
    #[test]
    fn a_rename_by_link_replaces_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let content = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        std::fs::write(path("file"), "new").unwrap();
        std::fs::write(path("taken"), "old").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
        let taken = rename_by_link(&path("file"), &path("taken"));
        assert_eq!(taken, Err(Errno::EXIST));
        assert_eq!(
            (content("file"), content("taken")),
            ("new".to_owned(), "old".to_owned())
        );
        assert!(rename_by_link(&path("folder"), &path("taken")).is_err());
        assert_eq!(content("taken"), "old");
        for name in ["file", "folder", "link"] {
            let aside = path(&format!("{name}.rejected"));
            rename_by_link(&path(name), &aside).unwrap();
            assert!(std::fs::symlink_metadata(path(name)).is_err(), "{name}");
            assert!(std::fs::symlink_metadata(aside).is_ok(), "{name}");
        }
        assert_eq!(content("file.rejected"), "new");
    }
}

//! Names of the files of a database.
//!
//! - Numbers in names are decimal and padded to ten digits, so that names with up to ten digits
//!   sort by number.
//! - A number has one spelling, so two names never mean the same segment, seal or checkpoint.
//!
//! Deliberately absent: access to files.

use std::path::{Path, PathBuf};

/// Name of the lock file. A writer locks it besides the folder and SUPER.
pub(crate) const LOCK: &str = "LOCK";
/// Name of the file that identifies the database (see `super_block`).
pub(crate) const SUPER: &str = "SUPER";
/// Name of the folder with the segments and their seals.
pub(crate) const LOG: &str = "log";
/// Name of the folder with the checkpoints.
pub(crate) const DIRECTORY: &str = "directory";
/// Extension of a file that is being written and is not valid yet. A crash may leave such a file in
/// the folder `directory`, and the next writable open removes it there. A new attempt to create the
/// database replaces a leftover `SUPER.tmp`.
pub(crate) const TEMPORARY: &str = "tmp";

const SEGMENT: &str = "seg";
const CHECKPOINT: &str = "idx";
const SEAL: &str = "seal";

/// Paths of the files and folders of one database.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    pub(crate) fn super_file(&self) -> PathBuf {
        self.root.join(SUPER)
    }

    pub(crate) fn super_temporary(&self) -> PathBuf {
        self.root.join(format!("{SUPER}.{TEMPORARY}"))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.root.join(LOG)
    }

    pub(crate) fn segment(&self, id: u64) -> PathBuf {
        self.log().join(segment_name(id))
    }

    /// Returns the path of the seal of a segment.
    pub(crate) fn seal(&self, id: u64) -> PathBuf {
        self.log().join(format!("{id:010}.{SEAL}"))
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.root.join(DIRECTORY)
    }

    pub(crate) fn checkpoint(&self, generation: u64) -> PathBuf {
        self.directory().join(checkpoint_name(generation))
    }

    pub(crate) fn checkpoint_temporary(&self, generation: u64) -> PathBuf {
        self.directory().join(format!("{generation:010}.{TEMPORARY}"))
    }
}

pub(crate) fn segment_name(id: u64) -> String {
    format!("{id:010}.{SEGMENT}")
}

pub(crate) fn checkpoint_name(generation: u64) -> String {
    format!("{generation:010}.{CHECKPOINT}")
}

/// Returns the id in the file name of a segment, or `None` for other names.
pub(crate) fn parse_segment(name: &str) -> Option<u64> {
    parse(name, SEGMENT)
}

/// Returns the id in the file name of a seal, or `None` for other names.
pub(crate) fn parse_seal(name: &str) -> Option<u64> {
    parse(name, SEAL)
}

/// Returns the generation in the file name of a checkpoint, or `None` for other names.
pub(crate) fn parse_checkpoint(name: &str) -> Option<u64> {
    parse(name, CHECKPOINT)
}

fn parse(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?.strip_suffix('.')?;
    let id: u64 = digits.parse().ok()?;
    // Only the canonical spelling is accepted, so that two names cannot mean the same file.
    (format!("{id:010}") == digits).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_its_place() {
        let paths = Paths::new(Path::new("db"));
        let named = [
            (paths.lock(), "db/LOCK"),
            (paths.super_file(), "db/SUPER"),
            (paths.super_temporary(), "db/SUPER.tmp"),
            (paths.log(), "db/log"),
            (paths.segment(7), "db/log/0000000007.seg"),
            (paths.seal(7), "db/log/0000000007.seal"),
            (paths.directory(), "db/directory"),
            (paths.checkpoint(8), "db/directory/0000000008.idx"),
            (paths.checkpoint_temporary(8), "db/directory/0000000008.tmp"),
        ];
        for (path, expected) in named {
            assert_eq!(path, Path::new(expected));
        }
        assert_eq!(parse_seal("0000000007.seal"), Some(7));
        assert_eq!((parse_seal("0000000007.seg"), parse_seal("7.seal")), (None, None));
    }

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(parse_segment(&segment_name(7)), Some(7));
        assert_eq!(parse_segment(&segment_name(u64::MAX)), Some(u64::MAX));
        assert_eq!(parse_checkpoint("0000000003.idx"), Some(3));
        for wrong in [
            "7.seg",
            "0000000007.idx",
            "00000000007.seg",
            "+000000007.seg",
            "0000000007.seg.tmp",
            ".seg",
        ] {
            assert_eq!(parse_segment(wrong), None, "{wrong}");
        }
    }
}

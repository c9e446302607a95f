//! Opens and reads files that other programs may have created, without waiting for these programs.
//!
//! Opening a FIFO waits for its other end, and a device can deliver bytes endlessly. A thread that
//! waits in such a call cannot be stopped.
//!
//! **Invariants**
//! - Every file is opened with `O_NONBLOCK`.
//! - The type of a file is checked on the open descriptor, because the path could lead to another
//!   file at the next moment.
//! - Reads are bounded.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file with these options and follows symbolic links.
///
/// Fails with `ErrorKind::InvalidInput` if the path leads to another type of file.
pub(crate) fn open_with(options: &mut OpenOptions, path: &Path) -> Result<File> {
    open_flags(options, path, OFlags::NONBLOCK)
}

/// Opens a regular file for reading. Rejects a symbolic link in the last part of the path.
pub(crate) fn open_no_follow(path: &Path) -> Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    open_flags(OpenOptions::new().read(true), path, flags)
}

fn open_flags(options: &mut OpenOptions, path: &Path, flags: OFlags) -> Result<File> {
    let file = options.custom_flags(flags.bits().cast_signed()).open(path);
    let file = match file {
        Ok(file) => file,
        // A FIFO without a reader cannot be opened for writing, and a socket cannot be opened at
        // all. The error then names the type of the file, which is more helpful than the number of
        // the system's error.
        Err(error) => match std::fs::metadata(path) {
            Ok(about) if !about.is_file() => return Err(not_regular(about.file_type())),
            _ => return Err(error),
        },
    };
    check(&file.metadata()?)?;
    Ok(file)
}

fn check(about: &Metadata) -> Result<()> {
    if about.is_file() {
        Ok(())
    } else {
        Err(not_regular(about.file_type()))
    }
}

fn not_regular(file_type: FileType) -> Error {
    let reason = format!("it is {}, not a regular file", name_of(file_type));
    Error::new(ErrorKind::InvalidInput, reason)
}

/// Returns the name of a file type with its article.
pub(crate) fn name_of(file_type: FileType) -> &'static str {
    if file_type.is_file() {
        "a regular file"
    } else if file_type.is_dir() {
        "a folder"
    } else if file_type.is_symlink() {
        "a symbolic link"
    } else if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Reads a whole regular file. Fails if it has more than `bytes_max` bytes.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    read_bounded(&open_with(OpenOptions::new().read(true), path)?, bytes_max)
}

/// Reads an open file from its position to its end. Fails if more than `bytes_max` bytes are left.
pub(crate) fn read_bounded(file: &File, bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("it has more than {bytes_max} bytes");
        return Err(Error::new(ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Creates a FIFO.
    pub(crate) fn make_fifo(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    #[test]
    fn only_regular_files_are_opened_and_no_call_waits() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        make_fifo(&at("fifo"));
        std::fs::create_dir(at("folder")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        symlink(at("file"), at("link")).unwrap();
        std::fs::write(at("file"), "12345").unwrap();
        for (name, reason) in [("fifo", "a FIFO"), ("folder", "a folder"), ("device", "a device")] {
            let error = read(&at(name), 100).unwrap_err();
            assert!(error.to_string().contains(reason), "{name}: {error}");
            let mut writing = OpenOptions::new();
            let error = open_with(writing.write(true), &at(name)).err();
            assert!(error.is_some(), "{name} was opened for writing");
        }
        read(&at("loop"), 100).unwrap_err();
        open_no_follow(&at("link")).unwrap_err();
        assert_eq!(read(&at("link"), 5).unwrap(), b"12345");
        assert_eq!(read(&at("file"), 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }
}

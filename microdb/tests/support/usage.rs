//! Memory, descriptors and maps of this process, and the disk space of a folder, as counted by the
//! operating system.
//!
//! Memory and descriptors are counted for the whole process. So a test that bounds them runs its
//! workload in a separate process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the anonymous resident memory of the process in bytes.
pub(crate) fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Returns the number of open file descriptors, including the one with which they are listed.
pub(crate) fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

/// Returns the process' maps of files below `folder`, including maps of removed files.
pub(crate) fn maps(folder: &Path) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let folder = folder.to_str().unwrap();
    let ours = maps.lines().filter(|line| line.contains(folder));
    ours.map(str::to_owned).collect()
}

/// Returns the size of all blocks of the files below `folder`, in bytes. A file that is removed
/// during the call counts as 0.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

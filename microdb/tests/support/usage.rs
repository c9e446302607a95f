//! Resources that this process holds, as the operating system counts them.
//!
//! They are of the whole process. A test that bounds them runs its workload in a process of its
//! own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Anonymous memory in bytes.
pub(crate) fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
    kib.unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Number of open descriptors.
pub(crate) fn descriptors() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

/// Maps of files below `folder`, of removed ones too.
pub(crate) fn maps(folder: &Path) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let folder = folder.to_str().unwrap();
    let ours = maps.lines().filter(|line| line.contains(folder));
    ours.map(str::to_owned).collect()
}

/// Blocks of the files below `folder`, in bytes. A file that is removed meanwhile counts nothing.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

//! Measures peak memory and peak disk usage of a child process that works on a database.
//!
//! The parent samples its child from outside, in the same way for every engine. So the sampling
//! does not add to the processor time of the child.
//!
//! - Anonymous memory is `RssAnon` of `/proc/PID/status`: heap and private maps, without pages of
//!   files.
//! - Disk usage is the size of the allocated blocks in the database's folder, including
//!   preallocated blocks, without holes.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::workloads::Measurement;

/// Interval between two samples. Shorter peaks can be missed.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(10);

/// Only every `DISK_EVERY`th sample includes the size of the folder, because this takes
/// a system call for each file.
const DISK_EVERY: u32 = 4;

const MIB: f64 = (1_u64 << 20) as f64;

/// The highest values of all samples so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Anonymous memory of the child, in bytes.
    pub anonymous_bytes: u64,
    /// Allocated blocks of the database's folder, in bytes.
    pub disk_bytes: u64,
}

impl Peaks {
    /// Samples a child and its folder until the child has ended.
    ///
    /// # Errors
    /// Returns an error if the child cannot be waited for.
    pub fn until_end(child: &mut Child, folder: &Path) -> io::Result<Self> {
        let mut peaks = Self::default();
        let status = format!("/proc/{}/status", child.id());
        for sample in 0_u32.. {
            // A process that has ended has no memory in its status, so its last sample does not
            // change the peak.
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            peaks.anonymous_bytes = peaks.anonymous_bytes.max(anonymous_bytes(&text).unwrap_or(0));
            if sample % DISK_EVERY == 0 {
                peaks.disk_bytes = peaks.disk_bytes.max(allocated_bytes(folder));
            }
            if child.try_wait()?.is_some() {
                break;
            }
            std::thread::sleep(SAMPLE_INTERVAL);
        }
        Ok(peaks)
    }

    /// Copies the peaks into the measurements of the child.
    pub fn copy_to(self, measurements: &mut [Measurement]) {
        for measurement in measurements {
            measurement.peak_anonymous_mib = Some(self.anonymous_bytes as f64 / MIB);
            measurement.peak_disk_mib = Some(self.disk_bytes as f64 / MIB);
        }
    }
}

/// Returns the value of `RssAnon` in the text of `/proc/PID/status`, in bytes.
fn anonymous_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Returns the size of all blocks that are allocated to the files in `folder` and its subfolders,
/// in bytes. Files that are removed during the call are skipped. Returns 0 if `folder` cannot be
/// read.
#[must_use]
pub fn allocated_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let bytes_of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => allocated_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(bytes_of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_read_from_the_status_of_a_process() {
        let text = "VmRSS:\t   10 kB\nRssAnon:\t    2048 kB\nRssFile:\t 7 kB\n";
        assert_eq!(anonymous_bytes(text), Some(2 << 20));
        assert_eq!(anonymous_bytes("VmRSS: 1 kB\n"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(anonymous_bytes(&own).unwrap() > 0);
    }

    #[test]
    fn blocks_count_and_holes_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("full"), vec![1; 1 << 20]).unwrap();
        let hole = std::fs::File::create(folder.path().join("hole")).unwrap();
        hole.set_len(1 << 30).unwrap();
        let bytes = allocated_bytes(folder.path());
        assert!((1 << 20..1 << 24).contains(&bytes), "{bytes}");
        assert_eq!(allocated_bytes(&folder.path().join("gone")), 0);
    }

    #[test]
    fn a_child_is_sampled_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), vec![1; 1 << 20]).unwrap();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdin.take());
        let peaks = Peaks::until_end(&mut child, folder.path()).unwrap();
        assert!(peaks.disk_bytes >= 1 << 20, "{peaks:?}");
    }
}

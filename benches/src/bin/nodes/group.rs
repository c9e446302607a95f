//! A cpu group is a control group (cgroup) of Linux that limits one process to a share of one
//! processor.
//!
//! Versions 1 and 2 of cgroups are supported. A group has the largest weight that the kernel
//! permits, so that its process gets the share even if other programs run. A process that has used
//! up its share pauses until the end of the period, so a short period means short pauses.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// A cpu group, which is removed when this value is dropped. Its process must have ended before,
/// because Linux does not remove a group that has a process.
pub(crate) struct Group {
    limit: PathBuf,
    account: PathBuf,
    is_unified: bool,
}

impl Group {
    /// Creates a group with this share (0 to 1) of one processor. The error is the reason why the
    /// group cannot be created.
    pub(crate) fn create(number: usize, share: f64, period_us: u64) -> Result<Group, String> {
        let name = format!("imt-nodes-{}-{number}", std::process::id());
        let quota_us = (period_us as f64 * share) as u64;
        let root = Path::new(ROOT);
        let is_unified = root.join("cgroup.controllers").exists();
        let group = if is_unified {
            Group {
                limit: root.join(&name),
                account: root.join(&name),
                is_unified,
            }
        } else {
            Group {
                limit: root.join("cpu").join(&name),
                account: root.join("cpuacct").join(&name),
                is_unified,
            }
        };
        let made = |path: &Path| {
            fs::create_dir_all(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
        };
        made(&group.limit)?;
        made(&group.account)?;
        if is_unified {
            write(&group.limit.join("cpu.max"), &format!("{quota_us} {period_us}"))?;
            write(&group.limit.join("cpu.weight"), "10000")?;
        } else {
            write(&group.limit.join("cpu.cfs_period_us"), &period_us.to_string())?;
            write(&group.limit.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
            write(&group.limit.join("cpu.shares"), "262144")?;
        }
        Ok(group)
    }

    /// Returns the files of the group. A process joins the group by writing its id to each of them.
    pub(crate) fn entrances(&self) -> Vec<PathBuf> {
        let name = if self.is_unified { "cgroup.procs" } else { "tasks" };
        let mut entrances = vec![self.limit.join(name), self.account.join(name)];
        entrances.dedup();
        entrances
    }

    /// Returns the processor time that the group has used, in seconds. `None` if it cannot be read.
    pub(crate) fn processor_seconds(&self) -> Option<f64> {
        let read = |name: &str| fs::read_to_string(self.account.join(name)).unwrap_or_default();
        if self.is_unified {
            let stat = read("cpu.stat");
            let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
            usage.and_then(|us| Some(us.parse::<f64>().ok()? / 1e6))
        } else {
            let usage: f64 = read("cpuacct.usage").trim().parse().ok()?;
            Some(usage / 1e9)
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // If the removal fails, the group remains. Without a process, it has no effect.
        let _ = fs::remove_dir(&self.limit);
        let _ = fs::remove_dir(&self.account);
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

//! A cpu group: a share of one processor for one process, by Linux's control groups.
//!
//! Both versions of the interface are known. A group has the largest weight, so that it gets its
//! share although other programs run. The shorter the period, the shorter a node that has used its
//! share up is still.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// A group, removed when it is dropped. Its process must have ended by then.
pub(crate) struct Group {
    limit: PathBuf,
    account: PathBuf,
    is_unified: bool,
}

impl Group {
    /// Makes a group with this share of one processor, or says why that is not possible.
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

    /// The files that a process writes its id to in order to be in the group.
    pub(crate) fn entrances(&self) -> Vec<PathBuf> {
        let name = if self.is_unified { "cgroup.procs" } else { "tasks" };
        let mut entrances = vec![self.limit.join(name), self.account.join(name)];
        entrances.dedup();
        entrances
    }

    /// Processor seconds that the group has used.
    pub(crate) fn processor_seconds(&self) -> f64 {
        let read = |name: &str| fs::read_to_string(self.account.join(name)).unwrap_or_default();
        if self.is_unified {
            let stat = read("cpu.stat");
            let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
            usage.and_then(|us| us.parse::<f64>().ok()).unwrap_or(0.0) / 1e6
        } else {
            read("cpuacct.usage").trim().parse::<f64>().unwrap_or(0.0) / 1e9
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Left behind, it is empty and harms nobody.
        let _ = fs::remove_dir(&self.limit);
        let _ = fs::remove_dir(&self.account);
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

//! Reads the processor time of processes from `/proc`.

use std::fs;

/// Clock ticks per second of the times in `/proc/PID/stat`. On x86-64 and 64-bit ARM, every kernel
/// reports these times in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the processor time of the given processes and of their direct children, in seconds. The
/// time of ended children is included: the kernel adds it to a counter of their parent once the
/// parent has waited for them.
pub(crate) fn seconds(processes: &[u32]) -> std::io::Result<f64> {
    let mut ticks = 0;
    for entry in fs::read_dir("/proc")? {
        // A process may end between the listing and the read. Such a process is skipped.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        // The name of the program is in parentheses and may contain spaces, so the fields are
        // counted from the closing parenthesis.
        let Some((head, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<u64> = rest
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let sum = |fields: Option<&[u64]>| fields.map_or(0, |fields| fields.iter().sum::<u64>());
        let id = head.split(' ').next().and_then(|id| id.parse().ok());
        let parent = fields.get(1).and_then(|parent| u32::try_from(*parent).ok());
        let is_one_of = |process: Option<u32>| process.is_some_and(|process| processes.contains(&process));
        if is_one_of(id) {
            ticks += sum(fields.get(11..15));
        } else if is_one_of(parent) {
            ticks += sum(fields.get(11..13));
        }
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

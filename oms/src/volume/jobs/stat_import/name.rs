//! Names of statistics files: `stat_`, fifteen digits of Unix milliseconds, `.csv`.
//!
//! The names of added files are stored for a week and then removed. Of all removed names that are
//! not too far ahead of the clock, only the one with the latest time in it is kept. This name is
//! the mark.
//!
//! **Invariants**
//! - A file with a time in its name up to that of the mark may have been added before. Such a file
//!   is not added.
//! - No name that is more than `AHEAD_MAX_MS` ahead of the clock becomes the mark. Such a mark
//!   would block all later files.

/// Maximum time by which the time in a name may be ahead of the clock, in milliseconds. A warehouse
/// that writes its local time instead of UTC is at most 14 hours ahead, so a day is enough.
pub(crate) const AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

/// Returns the milliseconds in the name of a statistics file; `None` for any other name.
pub(crate) fn stamp_of(name: &str) -> Option<u64> {
    let stamp = name.strip_prefix("stat_")?.strip_suffix(".csv")?;
    let is_stamp = stamp.len() == 15 && stamp.bytes().all(|byte| byte.is_ascii_digit());
    stamp.parse().ok().filter(|_| is_stamp)
}

/// Returns `true` if the time in a name is ahead of the clock by more than `AHEAD_MAX_MS`.
pub(crate) fn is_implausible(name: &str, now_ms: u64) -> bool {
    stamp_of(name).is_some_and(|stamp| stamp > now_ms.saturating_add(AHEAD_MAX_MS))
}

/// Returns `true` if a file of this name may have been added so long ago that its stored name was
/// removed.
///
/// A mark that is implausibly far ahead of the clock is ignored, because it would block all later
/// files. Earlier releases may have stored such a mark.
pub(crate) fn may_be_forgotten(name: &str, mark: Option<&str>, now_ms: u64) -> bool {
    mark.is_some_and(|mark| name <= mark && !is_implausible(mark, now_ms))
}

/// Returns the file name in a key, which is `NAME` or `FOLDER/NAME`.
fn of_key(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, name)| name)
}

/// Returns the new mark after the stored names `forgotten` were removed: of these names and the
/// former mark, the one with the latest time. Names that are implausibly far ahead of the clock are
/// left out. Returns `None` if no name is left.
pub(crate) fn next_mark<'a>(
    mark: Option<&'a str>,
    forgotten: impl IntoIterator<Item = &'a str>,
    now_ms: u64,
) -> Option<&'a str> {
    let names = mark.into_iter().chain(forgotten).map(of_key);
    names.filter(|name| !is_implausible(name, now_ms)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_of_accepts_only_names_of_the_warehouse() {
        assert_eq!(stamp_of("stat_000001700000000.csv"), Some(1_700_000_000));
        for name in [
            "stat_1700000000.csv",
            "stat_000001700000000.csv.tmp",
            "stats.csv",
            "stat_00000170000000x.csv",
            "stat_+00001700000000.csv",
        ] {
            assert_eq!(stamp_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_mark_never_goes_back_and_is_never_ahead_of_the_clock() {
        let (old, new, ahead) = (
            "stat_000000000000100.csv",
            "stat_000000000000200.csv",
            "stat_999999999999999.csv",
        );
        assert_eq!(next_mark(Some(new), [old], 1_000), Some(new));
        assert_eq!(next_mark(Some(old), [new, ahead], 1_000), Some(new));
        assert_eq!(next_mark(None, [ahead], 1_000), None);
        assert_eq!(
            next_mark(Some(ahead), [old], 1_000),
            Some(old),
            "a mark ahead of the clock is replaced"
        );
        let of_folder = "ada-0123/stat_000000000000200.csv";
        assert_eq!(next_mark(Some(old), [of_folder], 1_000), Some(new));
        assert!(may_be_forgotten(old, Some(new), 1_000));
        assert!(!may_be_forgotten(new, Some(old), 1_000));
        assert!(!may_be_forgotten(new, Some(ahead), 1_000));
    }
}

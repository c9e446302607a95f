//! Statistics files: sales as `PRODUCT,UNITS_SOLD,UNIT_PRICE`, which the order management adds up
//! and deletes.
//!
//! Invariants:
//! - A file under its final name is complete. The file is written and synced under a temporary
//!   name, which no reader uses, and then renamed.
//! - A process never uses the same file name twice, because the caller passes increasing times.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::seed::{Dice, Purpose};
use crate::{Error, Result};

/// Maximum of the units sold and of the unit price in a line. The minimum of both is 1.
const VALUE_MAX: u32 = 30;

/// Returns the content of statistics file `number` for a seed: one line for each product from 1 to
/// `lines`.
pub(crate) fn stat_lines(seed: u64, number: u64, lines: u32) -> String {
    let mut dice = Dice::numbered(seed, Purpose::StatFiles, number);
    let mut text = String::with_capacity(lines as usize * 12);
    for product in 1..=lines {
        let units = dice.between(1, VALUE_MAX);
        let price = dice.between(1, VALUE_MAX);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{product},{units},{price}");
    }
    text
}

/// Returns the name of the statistics file of a time, with the unix milliseconds in at least 15
/// digits.
pub(crate) fn stat_name(at_ms: u64) -> String {
    format!("stat_{at_ms:015}.csv")
}

/// Writes a statistics file atomically: a reader sees the complete file or none. Returns its path.
pub(crate) fn write_stat_file(folder: &Path, at_ms: u64, text: &str) -> Result<PathBuf> {
    let target = folder.join(stat_name(at_ms));
    let temporary = folder.join(format!(".{}.tmp", stat_name(at_ms)));
    let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &target).map_err(Error::io("rename", &temporary))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", folder))?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_file_has_a_line_for_each_product() {
        let text = stat_lines(1, 0, 10_000);
        assert_eq!(text.lines().count(), 10_000);
        for (line, expected) in text.lines().zip(1..) {
            let fields: Vec<u32> = line.split(',').map(|field| field.parse().unwrap()).collect();
            let [product, units, price] = fields[..] else {
                panic!("{line}");
            };
            assert_eq!(product, expected);
            assert!((1..=30).contains(&units) && (1..=30).contains(&price), "{line}");
        }
        assert_eq!(text, stat_lines(1, 0, 10_000));
        assert_ne!(text, stat_lines(1, 1, 10_000));
    }

    #[test]
    fn a_stat_file_leaves_no_other_file_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = write_stat_file(folder.path(), 1_700_000_000_000, "1,2,3\n").unwrap();
        assert_eq!(path, folder.path().join("stat_001700000000000.csv"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "1,2,3\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

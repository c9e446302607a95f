//! Request ids. Two runs with one data folder never use the same id.
//!
//! The file `front.json` has the next free id. A run reserves all its ids before its first request:
//! it replaces the file durably, under a lock. So neither a later run nor a run at the same time
//! uses one of these ids, even if the first run is killed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Content of `front.json`.
#[derive(Debug, Serialize, Deserialize)]
struct FrontFile {
    next_id: u64,
}

/// Reserves `count` consecutive ids. Returns the first id.
pub(super) fn reserve(data: &Path, count: u64) -> Result<u64> {
    let path = data.join("front.json");
    let lock_path = data.join("front.lock");
    let lock = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(Error::io("open", &lock_path))?;
    // The lock is held only while `front.json` is read and replaced. It is released when `lock` is
    // dropped at the end of this function.
    lock.lock().map_err(Error::io("lock", &lock_path))?;
    let first = match fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice::<FrontFile>(&text)
                .map_err(|e| Error::Malformed {
                    path: path.clone(),
                    line: e.line() as u64,
                    problem: format!(
                        "{e}; it must be like {{\"next_id\":1}} with an id above every order's so far"
                    ),
                })?
                .next_id
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 1,
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let file = FrontFile {
        next_id: first.saturating_add(count),
    };
    // The content is one number, so its serialization cannot fail.
    let text = serde_json::to_vec(&file).expect("plain data");
    let temporary = data.join("front.json.tmp");
    File::create(&temporary)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
        .map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))?;
    File::open(data)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", data))?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_given_twice_not_even_to_runs_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let mut firsts: Vec<u64> = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| reserve(folder.path(), 100).unwrap()))
                .collect();
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        firsts.sort_unstable();
        assert_eq!(firsts, (0..8).map(|n| 1 + n * 100).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_makes_no_sense_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("front.json"), "{\"next\":1}").unwrap();
        let error = reserve(folder.path(), 1).unwrap_err().to_string();
        assert!(
            error.contains("front.json, line 1") && error.contains("next_id"),
            "{error}"
        );
        assert_eq!(
            fs::read(folder.path().join("front.json")).unwrap(),
            b"{\"next\":1}"
        );
    }
}

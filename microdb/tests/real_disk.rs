//! Power cuts on real file systems: ext4 and xfs on loop devices, shut down without writing their
//! journal while the engine works.
//!
//! These tests check the assumptions of the disk in memory (`support/disk.rs`) with real file
//! systems. A shutdown drops unsynced data like a power cut, but never tears or reorders writes
//! that the disk has received. So this test shows that the engine requests syncs where it needs
//! them. The disk in memory covers torn and reordered writes.
//!
//! The test needs root, loop devices, mount, mkfs and `xfs_io`, which belongs to xfsprogs.
//! `MICRODB_REAL_CUTS=2000,500` sets the number of cuts for ext4 and xfs.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::other::{self, Other, say};
use crate::support::random::Random;
use crate::support::witness::{self, WRITERS};
use microdb::{Error, Options};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

/// Default numbers of power cuts: on ext4, and on xfs. All of these cuts together take a few
/// seconds.
const CUTS: &str = "20,5";
/// Number of power cuts per database. The first of them can hit the creation of the database.
const CUTS_EACH: u64 = 25;
/// Exclusive upper bound for the number of acknowledged commits after which the power is cut.
const PROMISES_MAX: u64 = 40;
/// Number of the signal that a read of an unreadable map raises.
const SIGBUS: i32 = 7;
/// Command to the second process: check the database and end.
const ONLY_LOOK: &str = "only look";
/// Size in MiB of the image file with the file system: at least the smallest size that mkfs.xfs
/// accepts.
const IMAGE_MIB: u64 = 320;

/// Runs a command. Returns its error output if it failed.
fn command(name: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(name)
        .args(args)
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{name} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

/// A file system in an image file, mounted until this value is dropped.
struct Mounted {
    image: PathBuf,
    folder: PathBuf,
}

impl Mounted {
    fn make(kept: &Path, kind: &str) -> Result<Self, String> {
        let (image, folder) = (kept.join(format!("{kind}.img")), kept.join(kind));
        std::fs::create_dir(&folder).unwrap();
        std::fs::File::create(&image)
            .and_then(|file| file.set_len(IMAGE_MIB << 20))
            .unwrap();
        let flags = if kind == "ext4" {
            ["-q", "-F"]
        } else {
            ["-q", "-f"]
        };
        command(
            &format!("mkfs.{kind}"),
            &[flags[0], flags[1], image.to_str().unwrap()],
        )?;
        let mounted = Self { image, folder };
        mounted.mount()?;
        Ok(mounted)
    }

    fn mount(&self) -> Result<(), String> {
        command(
            "mount",
            &[
                "-o",
                "loop",
                self.image.to_str().unwrap(),
                self.folder.to_str().unwrap(),
            ],
        )
    }

    fn unmount(&self) -> Result<(), String> {
        command("umount", &[self.folder.to_str().unwrap()])
    }

    /// Shuts the file system down, like a power cut: neither unsynced data nor the journal is
    /// written any more.
    fn shut_down(&self) -> Result<(), String> {
        command("xfs_io", &["-x", "-c", "shutdown", self.folder.to_str().unwrap()])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After a failed test, a file on the file system may still be open, and an ordinary unmount
        // fails. A lazy unmount detaches the mount point at once. The kernel releases the loop
        // device when the last open file is closed.
        let folder = self.folder.to_str().unwrap();
        let _ = self.unmount().or_else(|_| command("umount", &["--lazy", folder]));
    }
}

#[test]
#[ignore = "needs root and xfsprogs"]
fn ext4_shut_down_at_any_moment_keeps_every_acknowledged_commit() {
    let (ext4, _xfs) = cuts();
    campaign("ext4", ext4);
}

#[test]
#[ignore = "needs root and xfsprogs"]
fn xfs_shut_down_at_any_moment_keeps_every_acknowledged_commit() {
    let (_ext4, xfs) = cuts();
    campaign("xfs", xfs);
}

/// Returns the numbers of cuts for ext4 and for xfs.
fn cuts() -> (u64, u64) {
    let cuts = std::env::var("MICRODB_REAL_CUTS").unwrap_or_else(|_| CUTS.to_owned());
    let (ext4, xfs) = cuts.split_once(',').expect("MICRODB_REAL_CUTS=EXT4,XFS");
    (ext4.parse().unwrap(), xfs.parse().unwrap())
}

/// Runs the cuts on one kind of file system. Each cut has a new process, so that no file is open
/// when the file system is mounted again. The process checks the result of the previous cut and
/// then works until the next one.
fn campaign(kind: &str, cuts: u64) {
    let kept = tempfile::tempdir().unwrap();
    let mounted = &Mounted::make(kept.path(), kind).unwrap();
    let mut random = Random::new(cuts);
    let (mut promised, mut torn, mut sigbus) = (0, 0, 0);
    let mut numbers = BTreeMap::<u64, u64>::new();
    for cut in 0..cuts {
        let fail = |error: String| -> ! { panic!("{kind}, cut {cut}: {error}") };
        let folder = mounted.folder.join(format!("data/{}", cut / CUTS_EACH));
        if cut % CUTS_EACH == 0 {
            numbers.clear();
        }
        let mut other = Other::start(ENTRY, &told(&numbers), &folder);
        // If the number is 0, the power is cut at once. At that time the second process usually is
        // still starting, or creating or opening the database.
        let mut wanted = random.below(PROMISES_MAX);
        let mut is_cut = false;
        loop {
            if wanted == 0 && !is_cut {
                mounted.shut_down().unwrap_or_else(|error| fail(error));
                is_cut = true;
            }
            let Some(line) = other.said() else { break };
            if let Some((writer, number)) = line.split_once(' ').filter(|(writer, _)| writer.len() == 1) {
                numbers.insert(writer.parse().unwrap(), number.parse().unwrap());
                promised += 1;
                wanted = wanted.saturating_sub(1);
            } else if line == "torn" {
                torn += 1;
            } else {
                fail(line);
            }
        }
        let status = other.child.wait().unwrap();
        // A read of an unreadable map raises SIGBUS. Where the engine's handler does not make the
        // read an error, the signal ends the process, which is permitted here.
        let by_sigbus = status.signal() == Some(SIGBUS);
        sigbus += u64::from(by_sigbus);
        if !is_cut || !(status.success() || by_sigbus) {
            fail(format!("the other process ended by itself: {status}"));
        }
        mounted.unmount().unwrap_or_else(|error| fail(error));
        mounted.mount().unwrap_or_else(|error| fail(error));
        if cut % CUTS_EACH == CUTS_EACH - 1 {
            // The database is checked once more and removed, to free space for the next one.
            let mut other = Other::start(ENTRY, &format!("{ONLY_LOOK},{}", told(&numbers)), &folder);
            while let Some(line) = other.said() {
                assert_eq!(line, "torn", "{kind}, cut {cut}");
            }
            assert!(other.child.wait().unwrap().success(), "{kind}, cut {cut}");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
    println!(
        "power cuts on {kind}: {cuts} shutdowns, {promised} promises kept, {torn} torn tails; {sigbus} processes ended by SIGBUS"
    );
}

/// Returns the numbers of the acknowledged commits as a text for the other process.
fn told(numbers: &BTreeMap<u64, u64>) -> String {
    let told: Vec<String> = numbers
        .iter()
        .map(|(writer, number)| format!("{writer} {number}"))
        .collect();
    told.join(",")
}

fn options() -> Options {
    Options::new()
        .segment_bytes_first(16 * 1024)
        .segment_bytes_max(64 * 1024)
        .buffer_bytes(2000)
        .checkpoint_log_bytes(100_000)
}

/// Returns `true` if the file system was shut down. Then it accepts no new file.
fn is_gone(folder: &Path) -> bool {
    let probe = folder.with_extension("probe");
    let gone = std::fs::write(&probe, []).is_err();
    let _ = std::fs::remove_file(&probe);
    gone
}

/// Entry point of the second process that a test starts. The process gets the numbers of the
/// commits that were acknowledged before the last cut, and checks these commits. Then it commits
/// until the file system is shut down, unless its command is `ONLY_LOOK`.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((told, folder)) = other::part() else {
        return;
    };
    let promised: BTreeMap<u64, u64> = told
        .split(',')
        .filter_map(|one| one.split_once(' '))
        .filter_map(|(writer, number)| Some((writer.parse().ok()?, number.parse().ok()?)))
        .collect();
    let refused = |error: &Error| matches!(error, Error::Io { .. } | Error::Poisoned { .. });
    let db = match options().create(promised.is_empty()).open(&folder) {
        Ok(db) => db,
        // The file system was shut down before or during the open.
        Err(error) if refused(&error) => return,
        Err(error) => return say(&format!("WRONG {}", crate::support::workload::chain(&error))),
    };
    if db.recovery().dropped_bytes > 0 {
        say("torn");
    }
    match witness::check(&db, &promised) {
        Ok(()) => {}
        // The file system was shut down during the check, so the error proves no damage. All
        // records are checked again after the next mount.
        Err(_) if is_gone(&folder) => return,
        Err(error) => return say(&format!("WRONG {error}")),
    }
    if told.starts_with(ONLY_LOOK) {
        return;
    }
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let db = db.clone();
            scope.spawn(move || {
                let error = witness::work(&db, writer, |number| say(&format!("{writer} {number}")));
                if !refused(&error) {
                    say(&format!("WRONG {error:?}"));
                }
            });
        }
    });
}

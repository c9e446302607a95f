//! A campaign on identity. At a call of the engine to the disk, a *strike* changes the path of its
//! database, its LOCK or the working folder, or forks the process. A second process (the child
//! after a fork) then tries to open the folder to which the path leads.
//!
//! A victim process works on a database by a relative path, in a folder called the sandbox. At its
//! call number N, one of [`STRIKES`] is performed (`support/struck.rs` says which calls count).
//! Afterwards:
//!
//! - if the database still exists, it is sound and has all acknowledged records. If its lock also
//!   still exists, the victim continues without an error, unless the second process got the lock
//!   first;
//! - if the database was removed, or only its lock was taken away, no record begun after that is
//!   acknowledged;
//! - the second process is refused, or opens a database. The victim changes no file of that
//!   database.
//!
//! Each test tries every [`STRIDE`]th N. `MICRODB_IDENTITY_STRIDE=1` tries all.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::support::mount::command;
use crate::support::other::{self, Other, say};
use crate::support::struck::{Struck, Trigger};
use crate::support::workload::chain;
use microdb::{Db, Error, Options};

/// Module path of the test function that is the entry point of a second process.
const ENTRY: &str = concat!(module_path!(), "::the_other_process");

/// Default number of calls between two tries. The number is coprime to the number of calls of a
/// repeated step, so that the tries hit different calls of that step.
const STRIDE: u64 = 23;

/// State of the victim's database after a strike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// The database still exists, and has this name in the sandbox.
    Named(&'static str),
    /// The database still exists, has this name in the sandbox, and its lock was taken away.
    Unlocked(&'static str),
    Removed,
}

/// A strike: its name, its action, and the state of the victim's database afterwards.
type Strike = (&'static str, fn(&Sandbox), After);

/// All strikes of the campaign.
const STRIKES: [Strike; 9] = [
    ("rename", rename, After::Named("moved")),
    ("replace", replace, After::Named("moved")),
    ("remove", remove, After::Removed),
    ("chdir", chdir, After::Named("db")),
    ("symlink", symlink, After::Named("real")),
    ("bind", bind, After::Named("db")),
    ("fork", fork, After::Named("db")),
    ("lock removed", lock_removed, After::Unlocked("db")),
    ("lock replaced", lock_replaced, After::Unlocked("db")),
];

/// The victim's handle of its database, so that a forked child can try to use it.
static HANDLE: Mutex<Option<Db>> = Mutex::new(None);

/// The folder of one try of the campaign, and the second process.
struct Sandbox {
    root: PathBuf,
    /// The second process, which opens databases on command.
    other: Mutex<Other>,
    answer: Mutex<Option<Answer>>,
}

/// The response of the second process after it tried to open a database, and the files of that
/// database at that time.
struct Answer {
    said: String,
    place: PathBuf,
    files: Files,
}

/// Contents of files by path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    for entry in std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(Result::unwrap)
    {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

impl Sandbox {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the second process open the database at `place`, and hold it if the open succeeds.
    fn second_opens(&self, place: &Path) {
        let said = ask(
            &mut self.other.lock().unwrap(),
            &format!("hold {}", place.display()),
        );
        self.answer(said, place);
    }

    fn answer(&self, said: String, place: &Path) {
        *self.answer.lock().unwrap() = Some(Answer {
            said,
            place: place.to_owned(),
            files: files(place),
        });
    }
}

fn ask(other: &mut Other, question: &str) -> String {
    writeln!(other.child.stdin.as_mut().unwrap(), "{question}").unwrap();
    other.said().unwrap()
}

fn rename(sandbox: &Sandbox) {
    std::fs::rename(sandbox.path("db"), sandbox.path("moved")).unwrap();
    sandbox.second_opens(&sandbox.path("db"));
}

fn replace(sandbox: &Sandbox) {
    std::fs::rename(sandbox.path("db"), sandbox.path("moved")).unwrap();
    std::fs::rename(sandbox.path("elsewhere/db"), sandbox.path("db")).unwrap();
    sandbox.second_opens(&sandbox.path("db"));
}

fn remove(sandbox: &Sandbox) {
    std::fs::remove_dir_all(sandbox.path("db")).unwrap();
    sandbox.second_opens(&sandbox.path("db"));
}

fn chdir(sandbox: &Sandbox) {
    std::env::set_current_dir(sandbox.path("elsewhere")).unwrap();
    sandbox.second_opens(&sandbox.path("elsewhere/db"));
}

fn symlink(sandbox: &Sandbox) {
    std::fs::remove_file(sandbox.path("db")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("elsewhere/db"), sandbox.path("db")).unwrap();
    sandbox.second_opens(&sandbox.path("elsewhere/db"));
}

fn bind(sandbox: &Sandbox) {
    let (from, to) = (sandbox.path("elsewhere/db"), sandbox.path("db"));
    command("mount", &["--bind", from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
    sandbox.second_opens(&to);
}

/// Forks a child as the second process. The child tries to use the handle inherited from its
/// parent, and to open the database.
fn fork(sandbox: &Sandbox) {
    let is_open = HANDLE.lock().unwrap().is_some();
    let child = microdb::fuzzing::fork(|| {
        if let Some(db) = HANDLE.lock().unwrap().take() {
            let refused = |done: microdb::Result<()>| matches!(done, Err(Error::Forked));
            let tried = refused(db.table("t").map(drop)) && refused(db.batch().commit().map(drop));
            let closed = refused(db.checkpoint()) && refused(db.sync()) && refused(db.close());
            if !tried || !closed {
                return false;
            }
        }
        match options().open(sandbox.path("db")) {
            Err(Error::Locked { .. }) => true,
            // The child may open the database only if the victim did not have its lock at that
            // time.
            done => done.is_ok() && !is_open,
        }
    });
    assert!(
        microdb::fuzzing::wait(child),
        "the child, beside a handle: {is_open}"
    );
    sandbox.answer("locked".to_owned(), &sandbox.path("db"));
}

fn lock_removed(sandbox: &Sandbox) {
    let _ = std::fs::remove_file(sandbox.path("db/LOCK"));
    sandbox.second_opens(&sandbox.path("db"));
}

fn lock_replaced(sandbox: &Sandbox) {
    let _ = std::fs::rename(sandbox.path("db/LOCK"), sandbox.path("elsewhere/LOCK"));
    std::fs::write(sandbox.path("db/LOCK"), "").unwrap();
    sandbox.second_opens(&sandbox.path("db"));
}

fn options() -> Options {
    Options::new()
        .segment_bytes_first(4096)
        .segment_bytes_max(4096)
        .background(false)
}

/// Entry point of the processes that these tests start: the victim, and the process that opens
/// databases beside it.
#[test]
#[ignore = "the second process of other tests"]
fn the_other_process() {
    let Some((part, folder)) = other::part() else {
        return;
    };
    match part.strip_prefix("victim of ") {
        Some(strike) => victim(strike, &folder),
        None => second(),
    }
}

const SECOND_RECORDS: u32 = 12;

/// Runs commands from the standard input: open a database and hold it, or check that the held
/// database is sound and close it.
fn second() {
    let mut held = None;
    for line in std::io::stdin().lines().map(Result::unwrap) {
        match line.split_once(' ') {
            Some(("hold", path)) => match options().open(path) {
                Ok(db) => {
                    let table = db.table("second").unwrap();
                    for number in 0..SECOND_RECORDS {
                        table.put(number.to_le_bytes(), vec![2; 900]).unwrap();
                    }
                    held = Some(db);
                    say("held");
                }
                Err(Error::Locked { .. }) => say("locked"),
                Err(error) => say(&format!("WRONG: {}", chain(&error))),
            },
            _ => {
                if let Some(db) = held.take() {
                    check_second(&db);
                    db.close().unwrap();
                }
                say("released");
            }
        }
    }
}

fn check_second(db: &Db) {
    let table = db.get_table("second").unwrap();
    for number in 0..SECOND_RECORDS {
        let value = table.get(number.to_le_bytes()).unwrap();
        assert_eq!(value.as_deref(), Some(&[2; 900][..]), "record {number}");
    }
    assert!(db.verify().unwrap().is_sound());
}

/// Numbers of the records that the engine acknowledged to the victim, and the errors that it
/// returned.
#[derive(Default)]
struct Promised {
    /// Numbers of the acknowledged records.
    records: Vec<u32>,
    /// Numbers of the acknowledged records that were begun after the strike.
    late: Vec<u32>,
    errors: Vec<String>,
}

/// Runs the victim's work: an open, puts, checkpoints, a compaction, a backup and a close. Returns
/// the acknowledged records and the errors.
fn history(options: Options, trigger: &Trigger) -> Promised {
    let mut promised = Promised::default();
    if let Err(error) = work(options, trigger, &mut promised) {
        promised.errors.push(chain(&error));
    }
    *HANDLE.lock().unwrap() = None;
    promised
}

fn work(options: Options, trigger: &Trigger, promised: &mut Promised) -> microdb::Result<()> {
    let db = options.open("db")?;
    *HANDLE.lock().unwrap() = Some(db.clone());
    let table = db.table("t")?;
    let mut number = 100_u32;
    let mut put = |promised: &mut Promised, count: u32| {
        for _ in 0..count {
            let late = trigger.has_struck();
            match table.put(number.to_le_bytes(), vec![number as u8; 900]) {
                Ok(()) => {
                    promised.records.push(number);
                    if late {
                        promised.late.push(number);
                    }
                }
                Err(error) => promised.errors.push(chain(&error)),
            }
            // This record is overwritten each time, so the compaction finds dead bytes.
            let _ = table.put("hot", vec![1; 700]);
            number += 1;
        }
    };
    let note = |promised: &mut Promised, done: microdb::Result<()>| {
        promised.errors.extend(done.err().map(|error| chain(&error)));
    };
    put(promised, 4);
    note(promised, db.checkpoint());
    put(promised, 3);
    note(promised, db.compact().map(drop));
    put(promised, 2);
    note(promised, db.backup_to("copy").map(drop));
    put(promised, 2);
    note(promised, db.checkpoint());
    *HANDLE.lock().unwrap() = None;
    let closed = db.close();
    note(promised, closed);
    Ok(())
}

/// Number of records in a database that `make` creates before the victim opens it.
const BEFORE: u32 = 6;

fn make(path: &Path) {
    let db = options().open(path).unwrap();
    let table = db.table("t").unwrap();
    for number in 0..BEFORE {
        table.put(number.to_le_bytes(), vec![number as u8; 900]).unwrap();
    }
    db.close().unwrap();
}

fn victim(strike: &str, folder: &Path) {
    let (_, strike, after) = *STRIKES.iter().find(|(name, ..)| *name == strike).unwrap();
    let stride = std::env::var("MICRODB_IDENTITY_STRIDE").map_or(STRIDE, |text| text.parse().unwrap());
    let (mut at, mut struck, mut held) = (0, 0, 0);
    loop {
        let sandbox = Arc::new(Sandbox {
            root: folder.join(at.to_string()),
            other: Mutex::new(Other::start(ENTRY, "second", folder)),
            answer: Mutex::default(),
        });
        std::fs::create_dir_all(sandbox.path("elsewhere")).unwrap();
        // In every second try the victim creates its database, unless the strike needs an existing
        // one.
        let is_link = after == After::Named("real");
        let exists = is_link || after == After::Removed || at % 2 == 0;
        if is_link {
            std::os::unix::fs::symlink(sandbox.path("real"), sandbox.path("db")).unwrap();
        }
        if exists {
            make(&sandbox.path(if is_link { "real" } else { "db" }));
        } else {
            std::fs::create_dir(sandbox.path("db")).unwrap();
        }
        make(&sandbox.path("elsewhere/db"));
        std::env::set_current_dir(&sandbox.root).unwrap();
        let trigger = {
            let sandbox = sandbox.clone();
            Trigger::new(at, move || strike(&sandbox))
        };
        *HANDLE.lock().unwrap() = None;
        let promised = history(options().storage(Struck::storage(&trigger)), &trigger);
        if !trigger.has_struck() {
            assert!(
                promised.errors.is_empty(),
                "without a strike: {:?}",
                promised.errors
            );
            break;
        }
        struck += 1;
        held += check(&sandbox, after, exists, &promised, at);
        std::fs::remove_dir_all(&sandbox.root).unwrap();
        at += stride;
    }
    say(&format!("{struck} {held}"));
}

/// Checks, after a strike, the promises that the header of this file lists. Returns 1 if the second
/// process held a database, else 0.
fn check(sandbox: &Sandbox, after: After, existed: bool, promised: &Promised, at: u64) -> u32 {
    let answer = sandbox.answer.lock().unwrap().take().unwrap();
    let (said, errors) = (&answer.said, &promised.errors);
    let told = || format!("call {at}, the second process {said}, errors {errors:?}");
    let is_held = match said.as_str() {
        "held" => true,
        "locked" => false,
        _ => panic!("{}", told()),
    };
    let unchanged = !is_held || files(&answer.place) == answer.files;
    assert!(unchanged, "another database was changed: {}", told());
    let released = ask(&mut sandbox.other.lock().unwrap(), "release");
    assert_eq!(released, "released", "{}", told());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    if let Some(path) = sandbox.path("db").to_str().filter(|path| mounts.contains(path)) {
        // The second process may still have a segment mapped, so a normal unmount can fail.
        let unmounted = command("umount", &[path]).or_else(|_| command("umount", &["--lazy", path]));
        unmounted.unwrap();
    }
    let name = match after {
        After::Named(name) => name,
        After::Unlocked(name) => {
            let is_silent = promised.late.is_empty();
            assert!(is_silent, "acknowledged without a lock: {}", told());
            name
        }
        After::Removed => {
            assert!(
                promised.late.is_empty(),
                "acknowledged after the removal: {}",
                told()
            );
            return is_held.into();
        }
    };
    let is_right = |error: &String| match after {
        // An error is expected only if the second process got the lock before the victim requested
        // it.
        After::Named(_) => error.contains("is locked by") && promised.records.is_empty(),
        _ => error.contains("is locked by") || error.contains("LOCK was"),
    };
    assert!(errors.iter().all(is_right), "{}", told());
    let path = sandbox.path(name);
    if path.join("SUPER").exists() || existed || !promised.records.is_empty() {
        let before = 0..if existed { BEFORE } else { 0 };
        let db = options().create(false).open(&path);
        let db = db.unwrap_or_else(|error| panic!("{}: {}", told(), chain(&error)));
        let table = db.get_table("t");
        for number in before.chain(promised.records.iter().copied()) {
            let value = table.as_ref().unwrap().get(number.to_le_bytes()).unwrap();
            let expected = [number as u8; 900];
            assert_eq!(
                value.as_deref(),
                Some(&expected[..]),
                "record {number}: {}",
                told()
            );
        }
        assert!(db.verify().unwrap().is_sound(), "{}", told());
    }
    is_held.into()
}

fn campaign(strike: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Other::start(ENTRY, &format!("victim of {strike}"), folder.path());
    let said = victim
        .said()
        .unwrap_or_else(|| panic!("the victim of {strike} failed"));
    victim.ended_well();
    let (struck, held) = said.split_once(' ').unwrap();
    println!("{strike}: {struck} strikes, at {held} of them the second process had a database");
    assert!(struck.parse::<u32>().unwrap() > 4, "{said}");
}

#[test]
fn renaming_an_open_database_harms_neither_it_nor_its_successor() {
    campaign("rename");
}

#[test]
fn replacing_an_open_database_harms_neither_of_the_two() {
    campaign("replace");
}

#[test]
fn removing_an_open_database_ends_its_acknowledgements() {
    campaign("remove");
}

#[test]
fn changing_the_working_folder_harms_no_database() {
    campaign("chdir");
}

#[test]
fn changing_a_symbolic_link_harms_no_database() {
    campaign("symlink");
}

/// Run as root: `cargo test -p imt-microdb --test main identity_campaign:: -- --ignored`.
#[test]
#[ignore = "needs root"]
fn mounting_over_an_open_database_harms_no_database() {
    campaign("bind");
}

#[test]
fn forking_at_any_call_leaves_the_database_to_the_parent() {
    campaign("fork");
}

#[test]
fn removing_the_lock_lets_no_second_writer_in() {
    campaign("lock removed");
}

#[test]
fn replacing_the_lock_lets_no_second_writer_in() {
    campaign("lock replaced");
}

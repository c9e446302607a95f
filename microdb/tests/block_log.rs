//! Power cuts on real file systems at the level of the disk. Every block written by ext4 or xfs is
//! logged, and disks are rebuilt as a power cut between any two of these writes could leave them.
//!
//! - `real_disk.rs` shuts file systems down at random moments. Here the cut can be between any two
//!   writes of the disk. Writes that no flush has covered, including those of the journal, are
//!   lost, kept or torn in any combination. Only forced writes are always kept.
//! - So this test covers changed names (SUPER, checkpoints, tables), growing segments and
//!   compaction on these file systems.
//! - After a cut, the database must have a state between the last commit acknowledged as durable
//!   and the last commit attempted. The tests with a disk in memory check the same condition.
//!
//! `qemu-storage-daemon` serves the disk and logs its writes (`blklogwrites`). The tests also need
//! root, FUSE, loop devices, `mkfs.ext4` and `mkfs.xfs`. They are ignored by default, and fail
//! without these. `MICRODB_BLOCK_CUTS=2000` sets the number of disks, `MICRODB_BLOCK_SEED` selects
//! other work.
#![allow(clippy::unwrap_used, reason = "a test stops where it stands")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::mount::{Mounted, command};
use crate::support::random::Random;
use microdb::{Db, Durability, Options};

/// Default number of power cuts, each with a rebuilt disk. All cuts together take some seconds.
const CUTS: u64 = 25;
/// Number of steps of the logged work.
const STEPS: u64 = 400;
/// Smallest unit of a write on the disk, and unit of the block log, in bytes.
const SECTOR: u64 = 512;
/// Flags of an entry of the block log. `FLUSH`: all earlier writes are durable. `FORCED`: this
/// write is durable. `DISCARD`: the blocks are discarded.
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;

/// A file system under test.
struct Kind {
    name: &'static str,
    /// Size of the disk in MiB: at least the smallest size that mkfs accepts.
    disk_mib: u64,
    mkfs: &'static [&'static str],
    mount: &'static str,
    /// Number of neighbouring sectors of a write that are kept or lost together.
    tear: u64,
}

const EXT4: Kind = Kind {
    name: "ext4",
    disk_mib: 48,
    mkfs: &["-q", "-F", "-b", "4096", "-J", "size=4"],
    mount: "loop",
    tear: 1,
};

/// Each block of xfs has a version at its start. Recovery of xfs treats a block with a new start
/// and an old end as a new block. So a sector is as large as a block here, and blocks are never
/// torn. All rebuilt disks have the same id, and the previous disk may still be in use, hence
/// `nouuid`.
const XFS: Kind = Kind {
    name: "xfs",
    disk_mib: 320,
    mkfs: &["-q", "-f", "-b", "size=4096", "-s", "size=4096"],
    mount: "loop,nouuid",
    tear: 8,
};

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// A disk image that is served as a file with logged writes, and a loop device on that file. A drop
/// of this value detaches the device and ends the daemon that serves the file.
struct Logged {
    daemon: Child,
    file: PathBuf,
    device: String,
}

impl Logged {
    fn new(folder: &Path) -> Result<Self, String> {
        let file = folder.join("disk");
        fs::write(&file, []).unwrap();
        let mut daemon = Command::new("qemu-storage-daemon")
            .current_dir(folder)
            .args(["--blockdev", "driver=file,node-name=image,filename=image"])
            .args(["--blockdev", "driver=file,node-name=log,filename=log"])
            .args([
                "--blockdev",
                "driver=blklogwrites,node-name=logged,file=image,log=log",
            ])
            .args([
                "--export",
                "type=fuse,id=disk,node-name=logged,mountpoint=disk,writable=on",
            ])
            .args(["--chardev", "stdio,id=control", "--monitor", "chardev=control"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("qemu-storage-daemon: {error}"))?;
        // The daemon prints its greeting after all exports exist.
        let mut greeting = String::new();
        let heard = BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut greeting);
        let mut logged = Self {
            daemon,
            file,
            device: String::new(),
        };
        if heard.unwrap() == 0 {
            return Err("qemu-storage-daemon cannot serve a file".to_owned());
        }
        logged.device = command("losetup", &["--find", "--show", logged.file.to_str().unwrap()])?;
        Ok(logged)
    }

    /// Detaches the loop device and ends the daemon, so that the block log is complete.
    fn end(mut self) {
        command("losetup", &["--detach", &self.device]).unwrap();
        self.device.clear();
        let mut control = self.daemon.stdin.take().unwrap();
        control
            .write_all(b"{\"execute\": \"qmp_capabilities\"} {\"execute\": \"quit\"}\n")
            .unwrap();
        assert!(self.daemon.wait().unwrap().success());
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            let _ = command("losetup", &["--detach", &self.device]);
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = command("umount", &["--lazy", self.file.to_str().unwrap()]);
    }
}

/// An entry of the block log: a write, a flush or a discard.
struct Entry {
    flags: u64,
    /// Offset of the write on the disk. `from` is the offset of its bytes in the block log, and
    /// `bytes` their number.
    to: u64,
    from: u64,
    bytes: u64,
    /// Length of the block log in bytes up to the end of this entry.
    end: u64,
}

/// Returns the entries of the block log in the order in which they were written.
fn entries(log: &File) -> Vec<Entry> {
    let numbers = |at: u64| {
        let mut bytes = [0; 32];
        log.read_exact_at(&mut bytes, at).unwrap();
        let (numbers, _) = bytes.as_chunks::<8>();
        [0, 1, 2, 3].map(|index| u64::from_le_bytes(numbers[index]))
    };
    let [magic, version, count, sector] = numbers(0);
    assert_eq!((magic, version, sector), (0x006A_7366_7773_6872, 1, SECTOR));
    let mut at = SECTOR;
    let mut read = || {
        let [sector, sectors, flags, _] = numbers(at);
        let (from, bytes) = (at + SECTOR, sectors * SECTOR);
        at = from + if flags & DISCARD == 0 { bytes } else { 0 };
        Entry {
            flags,
            to: sector * SECTOR,
            from,
            bytes,
            end: at,
        }
    };
    (0..count).map(|_| read()).collect()
}

/// Writes those sectors of an entry to a disk for which `keep` returns `true`. Ignores a discard.
fn write(entry: &Entry, log: &File, disk: &File, keep: impl Fn(u64) -> bool) {
    if entry.flags & DISCARD != 0 {
        return;
    }
    for sector in 0..entry.bytes / SECTOR {
        if keep(sector) {
            let mut bytes = [0; SECTOR as usize];
            log.read_exact_at(&mut bytes, entry.from + sector * SECTOR)
                .unwrap();
            disk.write_all_at(&bytes, entry.to + sector * SECTOR).unwrap();
        }
    }
}

type State = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// The states of the database during the logged work, with their times. A time is given as the
/// length of the block log.
struct History {
    on: &'static Kind,
    /// The empty state, and then the state after each step. Each has the length of the block log at
    /// the beginning of its step.
    states: Vec<(State, u64)>,
    /// Length of the block log when a state was acknowledged as durable, and the index of that
    /// state in `states`.
    durable: Vec<(u64, usize)>,
}

fn options() -> Options {
    Options::new()
        .segment_bytes_first(8 * 1024)
        .segment_bytes_max(64 * 1024)
        .buffer_bytes(2000)
        .checkpoint_log_bytes(60_000)
}

/// The two names of the table that is renamed back and forth.
const NAMES: [&str; 2] = ["one name", "another"];

/// Runs the logged work and returns its history: commits of one to three records, durable or not;
/// renamed tables; many keys at once, so that directory and log grow; compactions, checkpoints,
/// syncs, reopenings.
fn work(on: &'static Kind, folder: &Path, log: &Path, random: &mut Random) -> History {
    let now = || fs::metadata(log).unwrap().len();
    let mut history = History {
        on,
        states: vec![(State::new(), 0)],
        durable: Vec::new(),
    };
    let mut db = options().open(folder).unwrap();
    let mut state = State::new();
    let (mut name, mut keys) = (0, 20);
    for step in 1..=STEPS {
        let began = now();
        let mut is_durable = true;
        match step % 40 {
            9 => db.compact().map(drop).unwrap(),
            19 => db.checkpoint().unwrap(),
            29 => db.sync().unwrap(),
            39 if state.keys().any(|(table, _)| table == NAMES[name]) => {
                db.rename_table(NAMES[name], NAMES[1 - name]).unwrap();
                let moved = std::mem::take(&mut state).into_iter();
                let renamed = |table| {
                    if table == NAMES[name] {
                        NAMES[1 - name].to_owned()
                    } else {
                        table
                    }
                };
                state = moved
                    .map(|((table, key), value)| ((renamed(table), key), value))
                    .collect();
                name = 1 - name;
            }
            kind => {
                keys += if kind == 0 { 100 } else { 0 };
                is_durable = random.chance(2, 3);
                let count = if kind == 0 { 100 } else { 1 + random.below(3) };
                let mut batch = db.batch();
                for _ in 0..count {
                    let table = if random.chance(1, 2) { NAMES[name] } else { "table" };
                    let key = random.below(keys).to_be_bytes().to_vec();
                    let value = vec![step as u8; random.index(400)];
                    batch.put(&db.table(table).unwrap(), &key, &value);
                    state.insert((table.to_owned(), key), value);
                }
                let durability = if is_durable {
                    Durability::Sync
                } else {
                    Durability::Buffered
                };
                batch.commit_with(durability).unwrap();
            }
        }
        history.states.push((state.clone(), began));
        if step % 90 == 0 {
            db.close().unwrap();
            db = options().open(folder).unwrap();
            is_durable = true;
        }
        if is_durable {
            history.durable.push((now(), history.states.len() - 1));
        }
    }
    history
}

/// Checks the database on a disk after a power cut at length `end` of the block log. Returns the
/// index in `history.states` of the state that the database has, or a description of the violation.
fn look(disk: &Path, folder: &Path, history: &History, end: u64) -> Result<usize, String> {
    let mounted = Mounted::new(&["-o", history.on.mount, disk.to_str().unwrap()], folder)?;
    let durable = history.durable.iter().rev().find(|(at, _)| *at <= end);
    let first = durable.map_or(0, |(_, state)| *state);
    let possible = history.states[first..]
        .iter()
        .take_while(|(_, began)| *began <= end);
    let possible: Vec<&State> = possible.map(|(state, _)| state).collect();
    let found = |db: &Db| -> Result<usize, String> {
        let found = contents(db).map_err(|error| error.to_string())?;
        let place = possible.iter().position(|state| **state == found);
        let place =
            place.ok_or_else(|| format!("{} records, as in none of {}", found.len(), possible.len()))?;
        let report = db.verify().map_err(|error| error.to_string())?;
        if report.is_sound() {
            Ok(first + place)
        } else {
            Err(format!("{:?}", report.damage))
        }
    };
    let path = mounted.0.join("database");
    let open = || {
        options()
            .background(false)
            .open(&path)
            .map_err(|error| crate::support::workload::chain(&error))
    };
    let db = options().background(false).create(first == 0).open(&path);
    let db = db.map_err(|error| crate::support::workload::chain(&error))?;
    let place = found(&db)?;
    drop(db);
    let db = open()?;
    if found(&db)? != place {
        return Err("opened again it is another".to_owned());
    }
    // A commit after the cut must survive as well.
    let table = db
        .table("after")
        .and_then(|table| table.put("the cut", "a commit").map(|()| table));
    table.map_err(|error| crate::support::workload::chain(&error))?;
    db.close()
        .map_err(|error| crate::support::workload::chain(&error))?;
    if open()?.table("after").unwrap().len() == 1 {
        Ok(place)
    } else {
        Err("the next commit is lost".to_owned())
    }
}

fn contents(db: &Db) -> microdb::Result<State> {
    let mut state = State::new();
    for info in db.tables() {
        let Some(table) = db.get_table(&info.name) else {
            continue;
        };
        for record in &table {
            let (key, value) = record?;
            state.insert((info.name.clone(), key.to_vec()), value.to_vec());
        }
    }
    Ok(state)
}

/// Fate of the writes that no flush has covered, when the power is cut.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Lost,
    /// Each write is kept, lost, or kept in some of its sectors, chosen at random by the seed.
    Mixed(u64),
}

/// Applies unflushed writes to a disk, as far as `fate` keeps them. Forced writes are always kept.
fn cut(pending: &[Entry], tear: u64, log: &File, disk: &File, fate: Fate) {
    let mut dice = Random::new(if let Fate::Mixed(seed) = fate { seed } else { 0 });
    for entry in pending {
        let (one, sectors) = (dice.below(3), dice.next());
        write(entry, log, disk, |sector| match fate {
            _ if entry.flags & FORCED != 0 => true,
            Fate::Kept => true,
            Fate::Lost => false,
            Fate::Mixed(_) => one == 0 || one == 1 && (sectors >> (sector / tear % 64)) & 1 == 0,
        });
    }
}

#[test]
#[ignore = "needs root and qemu-storage-daemon"]
fn a_disk_cut_off_between_any_two_writes_of_ext4_keeps_what_was_acknowledged() {
    any_cut(&EXT4);
}

#[test]
#[ignore = "needs root, qemu-storage-daemon and xfsprogs"]
fn a_disk_cut_off_between_any_two_writes_of_xfs_keeps_what_was_acknowledged() {
    any_cut(&XFS);
}

fn any_cut(kind: &'static Kind) {
    let kept = tempfile::tempdir().unwrap();
    let folder = kept.path();
    let path = |name: &str| folder.join(name);
    File::create(path("base"))
        .and_then(|file| file.set_len(kind.disk_mib << 20))
        .unwrap();
    fs::create_dir(path("mounted")).unwrap();
    fs::write(path("log"), []).unwrap();
    let base = path("base");
    let made = command(
        &format!("mkfs.{}", kind.name),
        &[kind.mkfs, &[base.to_str().unwrap()]].concat(),
    );
    made.unwrap();
    copy_anew(&base, &path("image"));
    let logged = Logged::new(folder).unwrap();
    let mounted = Mounted::new(&[&logged.device], &path("mounted")).unwrap();
    let mut random = Random::new(number("MICRODB_BLOCK_SEED", 1));
    let history = work(kind, &mounted.0.join("database"), &path("log"), &mut random);
    drop(mounted);
    logged.end();
    campaign(folder, &history, &mut random);
}

/// Copies a file to a new file. An existing file of that name is removed and not overwritten,
/// because a previous mount may still use it.
fn copy_anew(from: &Path, to: &Path) {
    let _ = fs::remove_file(to);
    // Unlike `fs::copy`, `cp` keeps holes, so the sparse copy is fast.
    command("cp", &[from.to_str().unwrap(), to.to_str().unwrap()]).unwrap();
}

/// Rebuilds a disk for each random cut and checks the database on it.
fn campaign(folder: &Path, history: &History, random: &mut Random) {
    let path = |name: &str| folder.join(name);
    let log = File::open(path("log")).unwrap();
    let entries = entries(&log);
    let open = |name: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path(name))
            .unwrap()
    };
    let durable = open("base");
    let cuts = number("MICRODB_BLOCK_CUTS", CUTS);
    let mut points: Vec<usize> = (0..cuts).map(|_| random.index(entries.len() + 1)).collect();
    points.sort_unstable();
    let (mut applied, mut last, mut forgotten, mut noticed) = (0, 0, 0, 0);
    let mut found = std::collections::BTreeSet::new();
    for (number, point) in points.into_iter().enumerate() {
        let end = if point == 0 { 0 } else { entries[point - 1].end };
        // This block tests the check itself, on a disk without the flushes since the previous cut.
        // The disk lacks commits that were acknowledged since that cut. The check must notice this
        // on at least half of these disks.
        let promised = |end: u64| history.durable.iter().filter(|(at, _)| *at <= end).count();
        if number % 4 == 1 && promised(end) > promised(last) {
            copy_anew(&path("base"), &path("cut"));
            forgotten += 1;
            noticed += u64::from(look(&path("cut"), &path("mounted"), history, end).is_err());
        }
        last = end;
        // All writes before the last flush are durable, so they are applied to the base of all
        // later disks.
        let flushed = entries[..point]
            .iter()
            .rposition(|entry| entry.flags & FLUSH != 0);
        while applied < flushed.unwrap_or(0) {
            write(&entries[applied], &log, &durable, |_| true);
            applied += 1;
        }
        let fate = match number % 4 {
            0 => Fate::Kept,
            1 => Fate::Lost,
            _ => Fate::Mixed(random.next()),
        };
        copy_anew(&path("base"), &path("cut"));
        cut(
            &entries[applied..point],
            history.on.tear,
            &log,
            &open("cut"),
            fate,
        );
        match look(&path("cut"), &path("mounted"), history, end) {
            Ok(state) => found.insert(state),
            Err(error) => panic!("cut behind write {point} of {}: {error}", entries.len()),
        };
    }
    println!(
        "power cuts on a block log of {} writes of {}: {cuts} disks, {} different states of {}; of {forgotten} disks that forgot flushes {noticed} were noticed",
        entries.len(),
        history.on.name,
        found.len(),
        history.states.len()
    );
    assert!(2 * noticed >= forgotten && found.len() as u64 > cuts / 8);
}

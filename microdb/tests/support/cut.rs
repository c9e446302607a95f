//! The disks that a power cut can leave.
//!
//! - Syncs make changes durable. `sync_data` covers the writes and the length of a file,
//!   `sync_folder` covers the names in a folder. Neither sync covers the changes of the other.
//!   Changes that no sync has covered are *pending*.
//! - Each pending event has a separate [`Fate`]: kept, lost, or torn. So later events may survive
//!   earlier ones. A name may survive without the bytes of its file, bytes without a name, and a
//!   length without its data. In the last case, the file shows zeros, old blocks or random bytes.
//!
//! Deliberately absent, because supported disks never do it: changes of bytes that no pending event
//! touches, and a rename that leaves the file without a name.

use std::collections::{BTreeMap, HashSet};

use super::disk::{Disk, Event, Made, Record};
use super::image::{Content, Image, Node, NodeId};
use super::random::{Random, mix};

/// Size of a sector in bytes. The fates `Sectors`, `Moment` and `Stale` choose for each sector.
const SECTOR: u64 = 512;

/// Fate of one pending event in a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fate {
    Kept,
    Lost,
    /// Only some sectors of a write reached the disk, chosen by the seed.
    Sectors(u64),
    /// Only the bytes from the first number up to, but not including, the second reached the disk.
    /// Both numbers count from the start of the write.
    Bytes(u64, u64),
    /// Each sector, each folder and each change of a file's length has its own moment. The events
    /// before this moment reached the disk, as during the writeback of a page cache. All pending
    /// events of a disk have the same seed.
    Moment(u64),
    /// Only the new length of the file after a write reached the disk. The new bytes are zeros.
    Length,
    /// Only the new length of the file, after a write or a reservation of space, reached the disk.
    /// Each new sector has bytes of any file, random bytes or zeros, chosen by the seed.
    Stale(u64),
    /// Only the first half of a rename reached the disk: the new name exists, and the old name
    /// still exists.
    BothNames,
}

/// Steps through the events of a disk. At each point, it builds disks that a power cut could leave.
pub(crate) struct Cuts<'a> {
    events: &'a [Event],
    durable: Image,
    pending: Vec<&'a Event>,
    /// Number of events before the current point.
    at: usize,
}

impl<'a> Cuts<'a> {
    /// Starts before the first event of `record`.
    pub(crate) fn new(record: &'a Record) -> Self {
        let pending = record.before.iter().collect();
        Self {
            events: &record.events,
            durable: record.base.clone(),
            pending,
            at: 0,
        }
    }

    /// Returns the number of events before the current point.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Applies the next event. Returns `false` if there is no further event.
    pub(crate) fn step(&mut self) -> bool {
        let Some(event) = self.events.get(self.at) else {
            return false;
        };
        self.at += 1;
        match event {
            Event::SyncFile { file } => self.settle(|event| file_of(event) == Some(*file), |_| true),
            Event::SyncFileFailed { file } => {
                // After a failed sync, each change of the file has reached the disk or not. The
                // operating system writes no change again.
                let seed = self.at as u64;
                self.settle(
                    |event| file_of(event) == Some(*file),
                    |index| mix(seed ^ (index << 32)) & 1 == 0,
                );
            }
            Event::SyncFolder { folder } => self.settle(|event| folder_of(event) == Some(*folder), |_| true),
            event => {
                // A file or folder exists in the image from its creation on, even before a durable
                // name leads to it.
                match event {
                    Event::Enter {
                        node,
                        made: Made::NewFile,
                        ..
                    } => {
                        assert_eq!(self.durable.add(Node::File(Content::default())), *node);
                    }
                    Event::Enter {
                        node,
                        made: Made::NewFolder,
                        ..
                    } => {
                        assert_eq!(self.durable.add(Node::Folder(BTreeMap::new())), *node);
                    }
                    _ => {}
                }
                self.pending.push(event);
            }
        }
        true
    }

    /// Returns the disk after a crash of the process without a power cut. All changes are visible,
    /// and unsynced events stay pending.
    pub(crate) fn killed(&self) -> Disk {
        let live = self.build(&vec![Fate::Kept; self.pending.len()]);
        let before = self.pending.iter().map(|event| (*event).clone()).collect();
        Disk::with_unsynced(self.durable.clone(), before, live)
    }

    /// Settles the pending events selected by `of`: those for which `keep` returns `true` become
    /// durable, the others are lost.
    fn settle(&mut self, of: impl Fn(&Event) -> bool, keep: impl Fn(u64) -> bool) {
        let mut index = 0;
        let pending = std::mem::take(&mut self.pending);
        for event in pending {
            if of(event) {
                let fate = if keep(index) { Fate::Kept } else { Fate::Lost };
                apply(&mut self.durable, event, fate, (0, 1));
                index += 1;
            } else {
                self.pending.push(event);
            }
        }
    }

    /// Returns at most `budget` disks that a power cut at this point could leave, each with
    /// different fates. Plain cases come first: nothing kept, all kept, and a random selection of
    /// the cases of `plain`. Random cases follow.
    pub(crate) fn disks(&self, random: &mut Random, budget: usize) -> Vec<Image> {
        let count = self.pending.len();
        let mut fates = vec![vec![Fate::Lost; count], vec![Fate::Kept; count]];
        if count > 0 {
            let mut plain = self.plain(random);
            let share = budget.saturating_mul(2) / 3;
            while fates.len() < share && !plain.is_empty() {
                fates.push(plain.swap_remove(random.index(plain.len())));
            }
            for _ in fates.len()..budget {
                let moment = Fate::Moment(random.next());
                let all_at_moments = random.chance(1, 4);
                let mut one = |event| {
                    if all_at_moments {
                        moment
                    } else {
                        draw(event, random)
                    }
                };
                fates.push(self.pending.iter().map(|event| one(event)).collect());
            }
        }
        let mut seen = HashSet::new();
        fates.truncate(budget);
        fates
            .iter()
            .filter(|fates| seen.insert(*fates))
            .map(|fates| self.build(fates))
            .collect()
    }

    /// Returns four plain cases for each pending event: it alone is lost; it alone is kept; only
    /// the events before it are kept; it has the fate of `tear` and all others are kept.
    fn plain(&self, random: &mut Random) -> Vec<Vec<Fate>> {
        let count = self.pending.len();
        let row = |fate: &dyn Fn(usize) -> Fate| (0..count).map(fate).collect::<Vec<_>>();
        let kept_if = |kept| if kept { Fate::Kept } else { Fate::Lost };
        let mut rows = Vec::with_capacity(4 * count);
        for one in 0..count {
            let torn = tear(self.pending[one], random);
            rows.push(row(&|index| kept_if(index != one)));
            rows.push(row(&|index| kept_if(index == one)));
            rows.push(row(&|index| kept_if(index < one)));
            rows.push(row(&|index| if index == one { torn } else { Fate::Kept }));
        }
        rows
    }

    fn build(&self, fates: &[Fate]) -> Image {
        let mut image = self.durable.clone();
        let of = self.pending.len() as u64;
        for (index, (event, fate)) in self.pending.iter().zip(fates).enumerate() {
            apply(&mut image, event, *fate, (index as u64, of));
        }
        image
    }
}

fn file_of(event: &Event) -> Option<NodeId> {
    match event {
        Event::Write { file, .. } | Event::Allocate { file, .. } | Event::SetLen { file, .. } => Some(*file),
        _ => None,
    }
}

/// Returns the folder that must be synced to make `event` durable. For a rename this is the folder
/// of the new name. Returns `None` for an event that changes no name.
fn folder_of(event: &Event) -> Option<NodeId> {
    match event {
        Event::Enter { folder, .. } | Event::Leave { folder, .. } => Some(*folder),
        Event::Rename { to, .. } => Some(to.0),
        _ => None,
    }
}

/// Returns a random fate in which a part of `event` reaches the disk, in extreme cases all or
/// nothing. Returns `Lost` for an event that cannot be torn.
fn tear(event: &Event, random: &mut Random) -> Fate {
    match event {
        Event::Write { bytes, .. } => {
            let len = bytes.len() as u64;
            let cut = random.below(len + 1);
            match random.below(5) {
                0 => Fate::Bytes(0, cut),
                1 => Fate::Bytes(cut, len),
                2 => Fate::Length,
                3 => Fate::Stale(random.next()),
                _ => Fate::Sectors(random.next()),
            }
        }
        Event::Allocate { .. } => Fate::Stale(random.next()),
        Event::Rename { .. } => Fate::BothNames,
        _ => Fate::Lost,
    }
}

/// Returns a random fate of `event`: kept, lost or torn.
fn draw(event: &Event, random: &mut Random) -> Fate {
    match random.below(5) {
        0 | 1 => Fate::Kept,
        2 | 3 => Fate::Lost,
        _ => tear(event, random),
    }
}

/// Applies `event` to `image`, as far as `fate` keeps it. Only the fate `Moment` uses `place`, the
/// index of the event among the pending events and their number.
fn apply(image: &mut Image, event: &Event, fate: Fate, place: (u64, u64)) {
    match event {
        Event::Write { file, offset, bytes } => write(image, *file, *offset, bytes, fate, place),
        Event::Allocate { file, end } => grow(image, *file, *end, fate, place),
        Event::SetLen { file, len } => {
            if arrives(fate, *file, place) {
                image.file_mut(*file).set_len(*len);
            }
        }
        Event::Enter {
            folder, name, node, ..
        } => {
            if arrives(fate, *folder, place) {
                image.folder_mut(*folder).insert(name.clone(), *node);
            }
        }
        Event::Leave { folder, name } => {
            if arrives(fate, *folder, place) {
                image.folder_mut(*folder).remove(name);
            }
        }
        Event::Rename { from, to, node } => {
            if arrives(fate, to.0, place) {
                if fate != Fate::BothNames {
                    image.folder_mut(from.0).remove(&from.1);
                }
                image.folder_mut(to.0).insert(to.1.clone(), *node);
            }
        }
        Event::SyncFile { .. } | Event::SyncFileFailed { .. } | Event::SyncFolder { .. } => {}
    }
}

/// Returns `true` if an event of the file or folder `node` reaches the disk. With the fate
/// `Moment`, the events of one `node` reach the disk in their order.
fn arrives(fate: Fate, node: NodeId, place: (u64, u64)) -> bool {
    match fate {
        Fate::Lost => false,
        Fate::Moment(seed) => place.0 < mix(seed ^ node as u64) % (place.1 + 1),
        _ => true,
    }
}

fn write(image: &mut Image, file: NodeId, offset: u64, bytes: &[u8], fate: Fate, place: (u64, u64)) {
    match fate {
        Fate::Lost => {}
        Fate::Bytes(from, to) => {
            image
                .file_mut(file)
                .write(offset + from, &bytes[from as usize..to as usize]);
        }
        Fate::Sectors(_) | Fate::Moment(_) => {
            let end = offset + bytes.len() as u64;
            let mut at = offset;
            while at < end {
                let sector = at / SECTOR;
                let stop = ((sector + 1) * SECTOR).min(end);
                let through = match fate {
                    Fate::Moment(seed) => {
                        place.0 < mix(seed ^ mix(sector ^ ((file as u64) << 40))) % (place.1 + 1)
                    }
                    Fate::Sectors(seed) => mix(seed ^ sector) & 1 == 0,
                    _ => true,
                };
                if through {
                    image
                        .file_mut(file)
                        .write(at, &bytes[(at - offset) as usize..(stop - offset) as usize]);
                }
                at = stop;
            }
        }
        Fate::Length | Fate::Stale(_) => grow(image, file, offset + bytes.len() as u64, fate, place),
        Fate::Kept | Fate::BothNames => image.file_mut(file).write(offset, bytes),
    }
}

/// Extends a file to at least `end` bytes if the event reaches the disk (`arrives`): with zeros, or
/// with the bytes that the fate `Stale` describes.
fn grow(image: &mut Image, file: NodeId, end: u64, fate: Fate, place: (u64, u64)) {
    let len = image.file(file).len();
    if len >= end || !arrives(fate, file, place) {
        return;
    }
    image.file_mut(file).set_len(end);
    let Fate::Stale(seed) = fate else { return };
    let files = image.file_nodes();
    let mut random = Random::new(seed);
    let mut at = len;
    while at < end {
        let step = (SECTOR - at % SECTOR).min(end - at);
        let mut stale = vec![0; step as usize];
        match random.below(3) {
            // The worst case is content from the same offset of another file, for example another
            // segment or an older checkpoint, because it may look valid.
            0 => _ = image.file(files[random.index(files.len())]).read(at, &mut stale),
            1 => stale = random.bytes(step as usize),
            _ => {}
        }
        image.file_mut(file).write(at, &stale);
        at += step;
    }
}

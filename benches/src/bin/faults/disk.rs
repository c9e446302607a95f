//! A model of a disk on which writes are durable only after a sync.
//!
//! The files of an engine are ordinary files. For each file, [`Disk`] has the content that syncs
//! and durable writes have made durable, and [`View`] has the content that the process sees. All
//! sectors in which the two contents differ are **pending**: a power cut may keep or lose each of
//! them.
//!
//! **Simplifications**
//! - The creation, removal and renaming of a file are durable at once.
//! - After a power cut, a sector that was written twice since the last sync has its durable or its
//!   newest content. Contents in between are not tried.
//! - After a failed sync the pending pages are clean, as on ext4 and XFS: a later sync does not
//!   write them, unless the process writes to the page again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use imt_benches::Outcome;
use imt_benches::data::Random;
use rustix::fs::SeekFrom;

/// Size of the unit that a disk writes whole, in bytes.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Number of sectors in a page, the unit in which the kernel writes files back.
const PAGE_SECTORS: u64 = 8;

type Sector = [u8; SECTOR_BYTES as usize];

const ZERO: Sector = [0; SECTOR_BYTES as usize];

/// The content of a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Content {
    pub(crate) len: u64,
    /// The sectors with at least one nonzero byte, by index. The last sector of the file is padded
    /// with zeros.
    sectors: BTreeMap<u64, Sector>,
}

impl Content {
    fn read(file: &File) -> Outcome<Self> {
        let len = file.metadata()?.len();
        let mut content = Self {
            len,
            ..Self::default()
        };
        let mut at = 0;
        // Holes are skipped: some engines reserve 64 MiB for a log of a few records.
        while at < len {
            let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) else {
                break;
            };
            let end = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(len);
            let first = data / SECTOR_BYTES;
            let mut bytes = Vec::new();
            rustix::fs::seek(file, SeekFrom::Start(first * SECTOR_BYTES))?;
            // A background thread of the engine may have truncated the file since its length was
            // read.
            file.take(end - first * SECTOR_BYTES).read_to_end(&mut bytes)?;
            for (index, part) in (first..).zip(bytes.chunks(SECTOR_BYTES as usize)) {
                let mut sector = ZERO;
                sector[..part.len()].copy_from_slice(part);
                content.set(index, &sector);
            }
            at = end;
        }
        Ok(content)
    }

    fn write(&self, path: &Path) -> Outcome<()> {
        let file = File::create(path)?;
        file.set_len(self.len)?;
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (index, sector) in &self.sectors {
            let at = index * SECTOR_BYTES;
            if at >= self.len {
                break;
            }
            if run.0 + run.1.len() as u64 != at {
                file.write_all_at(&run.1, run.0)?;
                run = (at, Vec::new());
            }
            run.1
                .extend_from_slice(&sector[..(self.len - at).min(SECTOR_BYTES) as usize]);
        }
        file.write_all_at(&run.1, run.0)?;
        Ok(())
    }

    fn sector(&self, index: u64) -> &Sector {
        self.sectors.get(&index).unwrap_or(&ZERO)
    }

    fn set(&mut self, index: u64, sector: &Sector) {
        if sector == &ZERO {
            self.sectors.remove(&index);
        } else {
            self.sectors.insert(index, *sector);
        }
    }

    /// Returns the indices of the sectors in which two contents differ, in ascending order.
    fn differences(&self, other: &Self) -> Vec<u64> {
        let indices: BTreeSet<u64> = self.sectors.keys().chain(other.sectors.keys()).copied().collect();
        let differs = |index: &u64| self.sector(*index) != other.sector(*index);
        indices.into_iter().filter(differs).collect()
    }

    fn page(&self, page: u64) -> Vec<Sector> {
        sectors_of(page).map(|index| *self.sector(index)).collect()
    }
}

fn sectors_of(page: u64) -> Range<u64> {
    page * PAGE_SECTORS..(page + 1) * PAGE_SECTORS
}

/// The identity of a file, which a rename does not change. The time of creation distinguishes files
/// that had the same inode one after the other. It is 0 if the file system does not report it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct FileId {
    inode: u64,
    created: u128,
}

impl FileId {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        let created = metadata
            .created()
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Self {
            inode: metadata.ino(),
            created: created.unwrap_or_default().as_nanos(),
        }
    }
}

/// The folder of an engine as its process sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) files: BTreeMap<PathBuf, (FileId, Content)>,
    folders: BTreeSet<PathBuf>,
}

impl View {
    pub(crate) fn read(folder: &Path) -> Outcome<Self> {
        let mut view = Self::default();
        let mut unread = vec![PathBuf::new()];
        while let Some(relative) = unread.pop() {
            for entry in std::fs::read_dir(folder.join(&relative))? {
                let entry = entry?;
                let path = relative.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    view.folders.insert(path.clone());
                    unread.push(path);
                } else if let Ok(file) = File::open(entry.path()) {
                    // A file that a background thread of the engine has just removed is left out.
                    let id = FileId::of(&file.metadata()?);
                    view.files.insert(path, (id, Content::read(&file)?));
                }
            }
        }
        Ok(view)
    }

    /// Writes all files to a new folder, in place of an earlier folder of this name.
    pub(crate) fn write(&self, folder: &Path) -> Outcome<()> {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        for path in &self.folders {
            std::fs::create_dir_all(folder.join(path))?;
        }
        for (path, (_, content)) in &self.files {
            content.write(&folder.join(path))?;
        }
        Ok(())
    }

    /// Returns the path of a file, or an empty text if the folder has no such file.
    pub(crate) fn name_of(&self, file: FileId) -> String {
        let found = self.files.iter().find(|(_, (id, _))| *id == file);
        found
            .map(|(path, _)| path.display().to_string())
            .unwrap_or_default()
    }

    /// Returns the place of each sector with at least one nonzero byte: file, offset of the sector,
    /// and number of the sector's bytes within the file.
    pub(crate) fn used(&self) -> Vec<(PathBuf, u64, u64)> {
        let mut used = Vec::new();
        for (path, (_, content)) in &self.files {
            for index in content.sectors.keys() {
                let at = index * SECTOR_BYTES;
                if at < content.len {
                    used.push((path.clone(), at, SECTOR_BYTES.min(content.len - at)));
                }
            }
        }
        used
    }

    /// Flips one bit of a file. Bit 0 is the lowest bit of the byte at `offset`. Does nothing if
    /// the view does not have the file.
    pub(crate) fn flip(&mut self, path: &Path, offset: u64, bit: u32) {
        if let Some((_, content)) = self.files.get_mut(path) {
            let mut sector = *content.sector(offset / SECTOR_BYTES);
            sector[(offset % SECTOR_BYTES) as usize] ^= 1 << bit;
            content.set(offset / SECTOR_BYTES, &sector);
        }
    }
}

/// The result of a power cut for one file. After `Old` the file has its durable length. After all
/// other variants except `Cut` it has its new length.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// No pending sector was written.
    Old,
    /// All pending sectors were written.
    New,
    /// Only this number of pending sectors was written, the first ones of the file. A file that has
    /// grown ends behind the last written sector, but neither before its durable end nor behind its
    /// new end. Another file has its new length.
    Cut(usize),
    /// Only this number of pending sectors was written, the first ones of the file. The file has
    /// its new length.
    Holes(usize),
    /// All pending sectors were written, except for the pending sector at this position. Positions
    /// count the pending sectors of the file from 0. Without a sector there, all were written.
    AllBut(usize),
    /// Each pending sector was written or not, at random.
    Random,
}

/// The durable content of all files. A file without an entry has no durable bytes.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    durable: HashMap<FileId, Content>,
    /// The pages of each file that a failed sync left clean, with their content at that time.
    clean: HashMap<FileId, BTreeMap<u64, Vec<Sector>>>,
}

impl Disk {
    /// Makes the whole view durable, except for pages that a failed sync left clean.
    pub(crate) fn sync_all(&mut self, view: &View) {
        for (id, content) in view.files.values() {
            self.sync(*id, content, None);
        }
    }

    /// Makes the sectors of a file durable, or only those that `range`, in bytes, touches. Pages
    /// that a failed sync left clean are not written. The length of the file is durable in any
    /// case.
    pub(crate) fn sync(&mut self, id: FileId, now: &Content, range: Option<Range<u64>>) {
        let durable = self.durable.entry(id).or_default();
        let clean = self.clean.entry(id).or_default();
        // A page that has changed since the failure is dirty again.
        clean.retain(|page, content| now.page(*page) == *content);
        let is_in_range = |index: &u64| {
            let sector = index * SECTOR_BYTES..(index + 1) * SECTOR_BYTES;
            range
                .as_ref()
                .is_none_or(|range| range.start < sector.end && sector.start < range.end)
        };
        for index in durable.differences(now) {
            if is_in_range(&index) && !clean.contains_key(&(index / PAGE_SECTORS)) {
                durable.set(index, now.sector(index));
            }
        }
        durable.len = now.len;
    }

    /// Records that the sync of a file failed: its pending pages are clean and not durable.
    pub(crate) fn fail(&mut self, id: FileId, now: &Content) {
        let durable = self.durable.entry(id).or_default();
        let clean = self.clean.entry(id).or_default();
        for index in durable.differences(now) {
            let page = index / PAGE_SECTORS;
            clean.insert(page, now.page(page));
        }
    }

    /// Records a write call to a range of bytes: the pages that the range touches are dirty again,
    /// even if the write changes no byte.
    pub(crate) fn touch(&mut self, id: FileId, range: Range<u64>) {
        let Some(clean) = self.clean.get_mut(&id) else {
            return;
        };
        let page_bytes = SECTOR_BYTES * PAGE_SECTORS;
        clean.retain(|page, _| range.end <= page * page_bytes || (page + 1) * page_bytes <= range.start);
    }

    /// Returns the files of a view with pending sectors or a pending length, and the number of
    /// pending sectors of each.
    pub(crate) fn pending(&self, view: &View) -> Vec<(PathBuf, usize)> {
        let mut pending = Vec::new();
        for (path, (id, now)) in &view.files {
            let old = self.durable.get(id).cloned().unwrap_or_default();
            let sectors = old.differences(now).len();
            if sectors > 0 || old.len != now.len {
                pending.push((path.clone(), sectors));
            }
        }
        pending
    }

    /// Returns the files after a power cut. `fate` decides about each file by its path.
    pub(crate) fn after_cut(
        &self,
        view: &View,
        random: &mut Random,
        mut fate: impl FnMut(&Path) -> Fate,
    ) -> View {
        let mut after = view.clone();
        for (path, (id, content)) in &mut after.files {
            let old = self.durable.get(id).cloned().unwrap_or_default();
            *content = cut(&old, content, random, fate(path));
        }
        after
    }
}

fn cut(old: &Content, new: &Content, random: &mut Random, fate: Fate) -> Content {
    let pending = old.differences(new);
    let written: Vec<u64> = match fate {
        Fate::Old => return old.clone(),
        Fate::New => return new.clone(),
        Fate::Cut(count) | Fate::Holes(count) => pending.into_iter().take(count).collect(),
        Fate::AllBut(lost) => {
            let is_lost = |position: usize| position == lost;
            let kept = pending.into_iter().enumerate();
            kept.filter(|(position, _)| !is_lost(*position))
                .map(|(_, index)| index)
                .collect()
        }
        Fate::Random => pending.into_iter().filter(|_| random.below(2) == 0).collect(),
    };
    let mut content = old.clone();
    for index in &written {
        content.set(*index, new.sector(*index));
    }
    content.len = new.len;
    if matches!(fate, Fate::Cut(_)) && new.len > old.len {
        let end = written.last().map_or(0, |last| (last + 1) * SECTOR_BYTES);
        content.len = end.clamp(old.len, new.len);
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FileId = FileId { inode: 1, created: 1 };

    fn content(sectors: &[u8]) -> Content {
        let mut content = Content {
            len: sectors.len() as u64 * SECTOR_BYTES,
            ..Content::default()
        };
        for (index, byte) in (0..).zip(sectors) {
            content.set(index, &[*byte; SECTOR_BYTES as usize]);
        }
        content
    }

    #[test]
    fn a_folder_is_read_and_written_with_holes_and_odd_lengths() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        std::fs::create_dir_all(from.join("sub")).unwrap();
        let file = File::create(from.join("sub/sparse")).unwrap();
        file.set_len(10_000_001).unwrap();
        file.write_all_at(b"end", 9_999_998).unwrap();
        std::fs::write(from.join("empty"), b"").unwrap();
        let view = View::read(&from).unwrap();
        view.write(&folder.path().join("to")).unwrap();
        let copy = View::read(&folder.path().join("to")).unwrap();
        assert_eq!(copy.files.len(), 2);
        for (path, (_, content)) in &view.files {
            assert_eq!(&copy.files[path].1, content);
        }
        // The only sector with data starts at 9,999,872, and ends with the file.
        assert_eq!(view.used(), [(PathBuf::from("sub/sparse"), 9_999_872, 129)]);
    }

    #[test]
    fn a_sync_makes_pending_sectors_durable_and_a_failed_one_loses_them() {
        let mut disk = Disk::default();
        disk.sync(ID, &content(&[1; 16]), None);
        // Both pages change, and the sync fails. Then only the second page is written again.
        let mut now = content(&[2; 16]);
        disk.fail(ID, &now);
        now.set(15, &[3; SECTOR_BYTES as usize]);
        disk.sync(ID, &now, None);
        let durable = &disk.durable[&ID];
        assert_eq!(durable.page(0), content(&[1; 8]).page(0));
        assert_eq!(durable.page(1), now.page(1));
        // A write that changes no byte makes the first page dirty too.
        disk.touch(ID, 0..1);
        disk.sync(ID, &now, None);
        assert_eq!(disk.durable[&ID], now);
    }

    #[test]
    fn a_power_cut_mixes_durable_and_pending_sectors() {
        let (old, new) = (content(&[1, 1]), content(&[2, 1, 3, 4]));
        let mut random = Random::new(1);
        let mut cut = |fate| cut(&old, &new, &mut random, fate);
        assert_eq!(cut(Fate::Cut(0)), old);
        assert_eq!(cut(Fate::Cut(2)), content(&[2, 1, 3]));
        assert_eq!(cut(Fate::Holes(1)), content(&[2, 1, 0, 0]));
        assert_eq!(cut(Fate::AllBut(0)), content(&[1, 1, 3, 4]));
        assert_eq!(cut(Fate::New), new);
    }
}

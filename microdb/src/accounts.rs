//! Who is live: for each segment, how many bytes of each table the directory still points to.
//!
//! Kept under the commit lock, where each change of a directory slot is made, and saved with each checkpoint.
//! Compaction reads it to pick its victims; dropping a table takes its bytes out without looking at a record.

use std::collections::VecDeque;

use crate::directory::Location;

/// One segment's account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// Where its frames end; 0 while it is active.
    pub(crate) end: u32,
    /// Live bytes by table. A short list: few tables share a segment.
    pub(crate) live: Vec<(u32, u64)>,
    /// Bytes of tombstones, which are neither live nor simply dead.
    pub(crate) tombstones: u64,
    /// Whether compaction has emptied it: the next checkpoint does without. Not saved.
    pub(crate) dying: bool,
}

impl Account {
    /// Live bytes of all tables.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The accounts of all segments, by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    first: u64,
    list: VecDeque<Option<Account>>,
}

impl Accounts {
    /// Opens an account for a new segment, which has the highest id so far.
    pub(crate) fn open(&mut self, segment: u64, account: Account) {
        if self.list.is_empty() {
            self.first = segment;
        }
        let index = (segment - self.first) as usize;
        if index >= self.list.len() {
            self.list.resize(index + 1, None);
        }
        self.list[index] = Some(account);
    }

    pub(crate) fn close(&mut self, segment: u64) {
        if let Some(entry) = self.entry(segment) {
            *entry = None;
        }
        while let Some(None) = self.list.front() {
            self.list.pop_front();
            self.first += 1;
        }
    }

    pub(crate) fn get(&self, segment: u64) -> Option<&Account> {
        self.list
            .get(usize::try_from(segment.checked_sub(self.first)?).ok()?)?
            .as_ref()
    }

    pub(crate) fn get_mut(&mut self, segment: u64) -> Option<&mut Account> {
        self.entry(segment)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Account)> {
        (self.first..)
            .zip(&self.list)
            .filter_map(|(id, account)| Some((id, account.as_ref()?)))
    }

    pub(crate) fn set_end(&mut self, segment: u64, end: u32) {
        if let Some(Some(account)) = self.entry(segment) {
            account.end = end;
        }
    }

    pub(crate) fn add_live(&mut self, at: Location, table: u32, bytes: usize) {
        let Some(account) = self.at(at) else { return };
        match account.live.iter_mut().find(|(id, _)| *id == table) {
            Some((_, live)) => *live += bytes as u64,
            None => account.live.push((table, bytes as u64)),
        }
    }

    pub(crate) fn sub_live(&mut self, at: Location, table: u32, bytes: usize) {
        let Some(account) = self.at(at) else { return };
        if let Some((_, live)) = account.live.iter_mut().find(|(id, _)| *id == table) {
            // What dies is not verified again, so a rotten record may claim any length: the sum is then off, and nothing else.
            *live = live.saturating_sub(bytes as u64);
        }
    }

    pub(crate) fn add_tombstone(&mut self, at: Location, bytes: usize) {
        if let Some(account) = self.at(at) {
            account.tombstones += bytes as u64;
        }
    }

    /// All of a table's records are dead.
    pub(crate) fn drop_table(&mut self, table: u32) {
        for account in self.list.iter_mut().flatten() {
            account.live.retain(|(id, _)| *id != table);
        }
    }

    /// Live bytes of one table in all segments.
    pub(crate) fn table_bytes(&self, table: u32) -> u64 {
        let entries = self.list.iter().flatten().flat_map(|account| &account.live);
        entries
            .filter(|(id, _)| *id == table)
            .map(|(_, bytes)| bytes)
            .sum()
    }

    fn entry(&mut self, segment: u64) -> Option<&mut Option<Account>> {
        self.list
            .get_mut(usize::try_from(segment.checked_sub(self.first)?).ok()?)
    }

    fn at(&mut self, at: Location) -> Option<&mut Account> {
        let index = at.segment16().wrapping_sub(self.first as u16);
        self.list.get_mut(usize::from(index))?.as_mut()
    }
}

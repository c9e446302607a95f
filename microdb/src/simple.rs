//! A plain hash directory with the interface of the real one, until that one lands.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::raw::epoch::Guard;

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub(crate) struct Location(u64);

impl Location {
    pub(crate) fn new(segment: u64, offset: u32) -> Self {
        assert!(offset != 0 && offset < 1 << 26);
        Self(((segment & 0xFFFF) << 26) | u64::from(offset))
    }

    #[inline]
    pub(crate) fn segment16(self) -> u16 {
        (self.0 >> 26) as u16
    }

    #[inline]
    pub(crate) fn offset(self) -> u32 {
        (self.0 as u32) & ((1 << 26) - 1)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeyHash(pub(crate) u64);

#[derive(Debug)]
pub(crate) struct Damage;

type Slots = HashMap<u64, Vec<Location>>;

#[derive(Default)]
pub(crate) struct Directory(RwLock<(Arc<Slots>, u64)>);

#[derive(Clone)]
pub(crate) struct View(Arc<Slots>, u64);

impl Directory {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.len() * 48
    }

    pub(crate) fn prefetch(&self, _guard: &Guard, _hash: KeyHash) {}

    pub(crate) fn candidates(
        &self,
        _guard: &Guard,
        hash: KeyHash,
    ) -> impl Iterator<Item = Result<Location, Damage>> + use<> {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        slots
            .0
            .get(&hash.0)
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .map(Ok)
    }

    pub(crate) fn find<E: From<Damage>>(
        &self,
        guard: &Guard,
        hash: KeyHash,
        mut is_same: impl FnMut(Location) -> Result<bool, E>,
    ) -> Result<Option<Location>, E> {
        for candidate in self.candidates(guard, hash) {
            let candidate = candidate?;
            if is_same(candidate)? {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Slots, &mut u64) -> T) -> T {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (slots, len) = &mut *slots;
        change(Arc::make_mut(slots), len)
    }

    pub(crate) fn insert(&self, hash: KeyHash, to: Location) {
        self.change(|slots, len| {
            slots.entry(hash.0).or_default().push(to);
            *len += 1;
        });
    }

    pub(crate) fn relocate(&self, hash: KeyHash, from: Location, to: Location) -> bool {
        self.change(|slots, _| {
            let slot = slots
                .get_mut(&hash.0)
                .and_then(|list| list.iter_mut().find(|slot| **slot == from));
            slot.map(|slot| *slot = to).is_some()
        })
    }

    pub(crate) fn remove(&self, hash: KeyHash, from: Location) -> bool {
        self.change(|slots, len| {
            let Some(list) = slots.get_mut(&hash.0) else {
                return false;
            };
            let Some(at) = list.iter().position(|slot| *slot == from) else {
                return false;
            };
            list.swap_remove(at);
            if list.is_empty() {
                slots.remove(&hash.0);
            }
            *len -= 1;
            true
        })
    }

    pub(crate) fn view(&self) -> View {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        View(slots.0.clone(), slots.1)
    }
}

impl View {
    pub(crate) fn len(&self) -> u64 {
        self.1
    }

    pub(crate) fn candidates(&self, hash: KeyHash) -> impl Iterator<Item = Result<Location, Damage>> + use<> {
        self.0
            .get(&hash.0)
            .cloned()
            .unwrap_or_default()
            .into_iter()
            .map(Ok)
    }

    pub(crate) fn locations(&self) -> Vec<Location> {
        self.0.values().flatten().copied().collect()
    }
}

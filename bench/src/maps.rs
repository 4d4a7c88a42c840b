//! The hash maps that people would take instead of the connection table, behind what a packet path asks of one.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use dashmap::DashMap;
use hashbrown::HashTable;
use weir_dataplane::conntrack::Tuple;

/// A map from tuples to flows. All get the same hash, computed once per packet, because the outer source port needs it too.
/// Entries change through atomics, as in a map that threads share they must.
pub trait FlowMap<E> {
    /// What holds entries in place during a batch.
    type Guard<'a>
    where
        Self: 'a;
    /// An empty map for so many entries.
    fn with_capacity(count: usize) -> Self;
    /// Adds an entry under a tuple that has none.
    fn add(&mut self, hash: u64, tuple: Tuple, entry: E);
    /// Once per batch.
    fn guard(&self) -> Self::Guard<'_>;
    /// Calls `each` with the tuple's entry, if there is one.
    fn find<R>(&self, guard: &Self::Guard<'_>, hash: u64, tuple: &Tuple, each: impl FnOnce(&E) -> R) -> Option<R>;
}

/// A tuple with its hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hashed {
    hash: u64,
    tuple: Tuple,
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Takes the hash that is there already.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only Hashed is hashed")
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// hashbrown: for one thread.
pub type Hashbrown<E> = HashTable<(Tuple, u64, E)>;
/// papaya: lock-free reads.
pub type Papaya<E> = papaya::HashMap<Hashed, E, BuildHasherDefault<AsIs>>;
/// dashmap: a lock per shard.
pub type Dash<E> = DashMap<Hashed, E, BuildHasherDefault<AsIs>>;

impl<E> FlowMap<E> for Hashbrown<E> {
    type Guard<'a>
        = ()
    where
        Self: 'a;
    fn with_capacity(count: usize) -> Self {
        Self::with_capacity(count)
    }
    fn add(&mut self, hash: u64, tuple: Tuple, entry: E) {
        self.insert_unique(hash, (tuple, hash, entry), |(_, hash, _)| *hash);
    }
    fn guard(&self) {}
    #[inline]
    fn find<R>(&self, (): &(), hash: u64, tuple: &Tuple, each: impl FnOnce(&E) -> R) -> Option<R> {
        HashTable::find(self, hash, |(key, ..)| key == tuple).map(|(.., entry)| each(entry))
    }
}

impl<E> FlowMap<E> for Papaya<E> {
    type Guard<'a>
        = papaya::LocalGuard<'a>
    where
        Self: 'a;
    fn with_capacity(count: usize) -> Self {
        Self::with_capacity_and_hasher(count, BuildHasherDefault::default())
    }
    fn add(&mut self, hash: u64, tuple: Tuple, entry: E) {
        self.pin().insert(Hashed { hash, tuple }, entry);
    }
    fn guard(&self) -> papaya::LocalGuard<'_> {
        Self::guard(self)
    }
    #[inline]
    fn find<R>(&self, guard: &papaya::LocalGuard<'_>, hash: u64, tuple: &Tuple, each: impl FnOnce(&E) -> R) -> Option<R> {
        self.get(&Hashed { hash, tuple: *tuple }, guard).map(each)
    }
}

impl<E> FlowMap<E> for Dash<E> {
    type Guard<'a>
        = ()
    where
        Self: 'a;
    fn with_capacity(count: usize) -> Self {
        Self::with_capacity_and_hasher(count, BuildHasherDefault::default())
    }
    fn add(&mut self, hash: u64, tuple: Tuple, entry: E) {
        self.insert(Hashed { hash, tuple }, entry);
    }
    fn guard(&self) {}
    #[inline]
    fn find<R>(&self, (): &(), hash: u64, tuple: &Tuple, each: impl FnOnce(&E) -> R) -> Option<R> {
        self.get(&Hashed { hash, tuple: *tuple }).map(|entry| each(entry.value()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds_what_was_added<M: FlowMap<u32>>() {
        let mut map = M::with_capacity(8);
        let tuple = |sport| Tuple { sport, ..Tuple::default() };
        // Two tuples of one hash must not be taken for each other.
        (0..8).for_each(|n| map.add(u64::from(n / 2), tuple(n), n.into()));
        let guard = map.guard();
        for n in 0..8 {
            assert_eq!(map.find(&guard, u64::from(n / 2), &tuple(n), |entry| *entry), Some(n.into()));
        }
        assert_eq!(map.find(&guard, 0, &tuple(9), |entry| *entry), None);
    }

    #[test]
    fn every_map_finds_what_was_added_and_nothing_else() {
        finds_what_was_added::<Hashbrown<u32>>();
        finds_what_was_added::<Papaya<u32>>();
        finds_what_was_added::<Dash<u32>>();
    }
}

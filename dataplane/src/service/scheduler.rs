//! Choices by hash: the same client or flow meets the same backend on every node, and few move when the backends change.

use super::Backend;
use super::affinity::{backend_hash, mix};
use crate::conntrack::Tuple;
use crate::model::Ip;

/// Table sizes of Maglev: primes, one for each power of two (Maglev, NSDI 2016, §3.4).
const PRIMES: [u32; 9] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521];
/// Table entries per backend. At 100 the most loaded backend has about 1 % more than the mean (§5.3 there).
const ENTRIES_PER_BACKEND: usize = 100;

/// The backend with the highest weight for a client (rendezvous hashing): when one of n leaves, only its own clients move.
/// `backends` are not empty.
pub(super) fn rendezvous(backends: &[Backend], client: Ip) -> usize {
    let client = hash_ip(client);
    let weight = |index: &usize| mix(client ^ backend_hash(&backends[*index]));
    (0..backends.len()).max_by_key(weight).unwrap_or_default()
}

/// The backend with the fewest connections, one of those at random where several have as few. Looks at all: 1 ns each. `None`
/// where nothing is counted.
pub(super) fn least(counters: &[u32], connections: impl Fn(u32) -> u32, random: &mut fastrand::Rng) -> Option<usize> {
    let (mut chosen, mut fewest, mut alike) = (None, u32::MAX, 0);
    for (index, counter) in counters.iter().enumerate() {
        let count = connections(*counter);
        if count < fewest {
            (chosen, fewest, alike) = (Some(index), count, 1);
        } else if count == fewest {
            alike += 1;
            if random.u32(..alike) == 0 {
                chosen = Some(index);
            }
        }
    }
    chosen
}

/// Fills a Maglev table: each entry is an index of `backends`. Empty where there are none, or too many for 16 bits.
pub(super) fn maglev_table(backends: &[Backend]) -> Vec<u16> {
    if backends.is_empty() || backends.len() > usize::from(u16::MAX) {
        return Vec::new();
    }
    let wanted = backends.len() * ENTRIES_PER_BACKEND;
    let size = PRIMES.into_iter().find(|prime| *prime as usize >= wanted).unwrap_or(PRIMES[PRIMES.len() - 1]) as usize;
    // Each backend's own permutation of the entries: first entry and stride (§3.4, pseudocode 1).
    let mut turns: Vec<(usize, usize)> = backends
        .iter()
        .map(|backend| {
            let hash = backend_hash(backend);
            (hash as usize % size, mix(hash) as usize % (size - 1) + 1)
        })
        .collect();
    let mut table: Vec<Option<u16>> = vec![None; size];
    let mut filled = 0;
    while filled < size {
        for (index, (entry, stride)) in turns.iter_mut().enumerate() {
            while table[*entry].is_some() {
                *entry = (*entry + *stride) % size;
            }
            table[*entry] = Some(index as u16);
            filled += 1;
            if filled == size {
                break;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// The backend of a flow by its Maglev table.
pub(super) fn maglev(table: &[u16], tuple: &Tuple) -> Option<usize> {
    let ports = u64::from(tuple.sport) << 32 | u64::from(tuple.dport) << 16 | u64::from(tuple.proto);
    let hash = mix(hash_ip(tuple.src) ^ mix(hash_ip(tuple.dst) ^ ports));
    let entry = ((u128::from(hash) * table.len() as u128) >> 64) as usize;
    table.get(entry).map(|index| usize::from(*index))
}

fn hash_ip(ip: Ip) -> u64 {
    mix(mix((ip.0 >> 64) as u64) ^ ip.0 as u64)
}

//! ClientIP affinity: which backend a client was given last (E2.34). A backend that was gone in between is another one, as in
//! kube-proxy's nftables mode, which forgets the clients of an endpoint with it.
//!
//! A fixed array of atomics, touched for new flows only, shared by all workers without locks. 16 bytes a slot, four slots a
//! set; when a set is full its oldest entry gives way.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Backend;
use crate::model::Ip;

const WAYS: usize = 4;

/// A client of a service port, whichever of its addresses it asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    /// Fingerprint of the service port.
    pub(super) service: u64,
    /// The client.
    pub(super) address: Ip,
}

/// Two words of which the first is the key combined with the second: a reader that meets half of a concurrent write sees a
/// key that is not its own.
#[derive(Debug, Default)]
struct Slot {
    sealed: AtomicU64,
    /// Backend's fingerprint << 32 | second of its last use; 0 = empty.
    value: AtomicU64,
}

/// Remembered choices.
#[derive(Debug)]
pub struct Affinity {
    slots: Box<[Slot]>,
    key: u64,
}

impl Affinity {
    /// Room for about `clients` choices; `key` makes collisions unpredictable.
    pub fn new(clients: u32, key: u64) -> Self {
        let count = (clients.max(WAYS as u32) as usize).next_power_of_two();
        Self { slots: (0..count).map(|_| Slot::default()).collect(), key }
    }

    /// The place among the candidates of the one that the client was given less than `timeout_secs` ago and that has not been gone
    /// in between. `since` tells of each when it came.
    pub(super) fn find(&self, client: &Client, candidates: &[Backend], since: &[u32], timeout_secs: u32, now_secs: u32) -> Option<usize> {
        let hash = self.hash(client);
        let value = self.set(hash).iter().find_map(|slot| {
            let value = slot.value.load(Ordering::Relaxed);
            (value != 0 && slot.sealed.load(Ordering::Relaxed) ^ value == hash).then_some(value)
        })?;
        let (wanted, used_secs) = ((value >> 32) as u32, value as u32);
        let fresh = now_secs.wrapping_sub(used_secs) < timeout_secs;
        candidates.iter().zip(since).position(|(backend, since)| fresh && print(backend, *since) == wanted)
    }

    /// Notes what the client was given, a backend that came at `since`.
    pub(super) fn remember(&self, client: &Client, backend: &Backend, since: u32, now_secs: u32) {
        let hash = self.hash(client);
        let value = u64::from(print(backend, since)) << 32 | u64::from(now_secs);
        let own = |slot: &&Slot| slot.sealed.load(Ordering::Relaxed) ^ slot.value.load(Ordering::Relaxed) == hash;
        let age = |slot: &&Slot| match slot.value.load(Ordering::Relaxed) {
            0 => u32::MAX,
            value => now_secs.wrapping_sub(value as u32),
        };
        let set = self.set(hash);
        if let Some(slot) = set.iter().find(own).or_else(|| set.iter().max_by_key(age)) {
            slot.value.store(value, Ordering::Relaxed);
            slot.sealed.store(hash ^ value, Ordering::Relaxed);
        }
    }

    fn set(&self, hash: u64) -> &[Slot] {
        let first = hash as usize & (self.slots.len() - 1) & !(WAYS - 1);
        &self.slots[first..first + WAYS]
    }

    fn hash(&self, client: &Client) -> u64 {
        let address = client.address.0;
        mix(mix(mix(self.key ^ client.service) ^ (address >> 64) as u64) ^ address as u64)
    }
}

/// The finalizer of SplitMix64: every input bit changes half of the output.
pub(super) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Names a text in 64 bits, the same in every process.
pub(super) fn fingerprint(text: &[u8]) -> u64 {
    text.iter().fold(0, |hash, byte| mix(hash ^ u64::from(*byte)))
}

/// Names a backend in 32 bits, never 0; one that was gone and came back has another name.
fn print(backend: &Backend, since: u32) -> u32 {
    (backend_hash(backend) as u32 ^ since).max(1)
}

/// Names a backend in 64 bits, the same in every process.
pub(super) fn backend_hash(backend: &Backend) -> u64 {
    let address = backend.address.0;
    mix(mix((address >> 64) as u64 ^ u64::from(backend.port)) ^ address as u64)
}

//! The choice of a source port for masquerading.
//!
//! After service and policy, for the first packet of a flow that leaves the cluster. Knows no table: whether a tuple is
//! taken is asked of the caller, who also keeps away the ports that the node itself needs.

use std::ops::RangeInclusive;

use crate::conntrack::Tuple;
use crate::model::{Ip, proto};

/// Tuples tried at random before consecutive ones. At a range 90 % full this many fail once in 850 times.
const TRIES_RANDOM: u32 = 64;
/// Consecutive ports tried then. What one packet may cost stays bounded, so a full range cannot be used to slow us down.
const TRIES_CONSECUTIVE: u32 = 64;

/// The tuple that `tuple` becomes when it leaves with the source `address` and a port, or ICMP identifier, from `ports`.
///
/// `taken` is asked about the reply's tuple, as conntrack would find it: the inverse of the result. The search starts at a
/// random place, so that ports are not guessed easily (RFC 6056 §3.3.1), and ends after at most 128 tries; a range of up to
/// 64 ports is searched whole. `None` where nothing free was found. ICMP is taken for an echo. Protocols without ports keep
/// none and have one try.
pub fn select_source(
    tuple: &Tuple,
    address: Ip,
    ports: &RangeInclusive<u16>,
    rng: &mut fastrand::Rng,
    mut taken: impl FnMut(&Tuple) -> bool,
) -> Option<Tuple> {
    let has_ports = matches!(tuple.proto, proto::TCP | proto::UDP | proto::SCTP);
    let is_echo = tuple.is_icmp();
    let with_port = |port: u16| match (has_ports, is_echo) {
        (true, _) => Tuple { src: address, sport: port, ..*tuple },
        (_, true) => Tuple { src: address, sport: port, dport: port, ..*tuple },
        _ => Tuple { src: address, ..*tuple },
    };
    let mut free = |port: u16| Some(with_port(port)).filter(|candidate| !taken(&candidate.inverse()));
    if !has_ports && !is_echo {
        return free(0);
    }
    if ports.is_empty() {
        return None;
    }
    let count = u32::from(ports.end() - ports.start()) + 1;
    let tries = if count <= TRIES_CONSECUTIVE { 0 } else { TRIES_RANDOM };
    if let Some(found) = (0..tries).find_map(|_| free(rng.u16(ports.clone()))) {
        return Some(found);
    }
    let first = rng.u32(0..count);
    (0..count.min(TRIES_CONSECUTIVE)).find_map(|step| free(ports.start() + ((first + step) % count) as u16))
}

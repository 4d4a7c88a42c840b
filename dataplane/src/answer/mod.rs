//! Answers: a frame turned around to its sender, in its own slot.
//!
//! Called by the pipeline once it has decided to answer; how often it may (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)) is decided
//! there. Each function takes the frame as it was received, before any translation, and the headers that `parse` found in
//! it. Whether the standards allow an answer at all is decided here: where they do not, the function says `false` and the
//! frame is to be dropped; its content is then arbitrary. ARP is answered by [`wire::arp::answer`](crate::wire::arp::answer).

mod echo;
mod error;
mod neighbour;
mod reset;
#[cfg(test)]
mod tests;

pub use echo::echo_reply;
pub use error::{IcmpError, icmp_error};
pub use neighbour::{advertise, solicited_target};
pub use reset::tcp_reset;

use crate::parse::{HeaderFlags, Headers};
use crate::wire::{chunk_mut, ethernet};

/// Time to live of what we send (RFC 1700, "64").
const TTL: u8 = 64;

/// Tells whether the frame was sent to one receiver by one sender, untagged: nothing else gets an answer.
fn is_unicast(headers: &Headers) -> bool {
    let odd = HeaderFlags::MULTICAST_DST.with(HeaderFlags::UNSPECIFIED_SRC).with(HeaderFlags::VLAN);
    !headers.has(odd) && !headers.dst_mac.is_multicast() && !headers.src_mac.is_multicast()
}

/// Writes the Ethernet header of an answer.
fn emit_ethernet(bytes: &mut [u8], headers: &Headers) -> Option<()> {
    let ethertype = if headers.is_v6() { ethernet::IPV6 } else { ethernet::IPV4 };
    ethernet::Header { dst: headers.src_mac, src: headers.dst_mac, ethertype }.emit(chunk_mut(bytes, 0)?);
    Some(())
}

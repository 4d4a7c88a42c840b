//! What an attacker sends instead: fragments and broken packets, made from requests of known flows.

use weir_dataplane::model::proto;
use weir_dataplane::wire::checksum;

use crate::traffic::Traffic;

/// Where the IPv4 header starts in a frame, and where its fields do.
const IP: usize = 14;
const TOTAL_LEN: usize = IP + 2;
const FRAGMENT_ID: usize = IP + 4;
const FRAGMENT_FIELD: usize = IP + 6;
const CHECKSUM: usize = IP + 10;
const MORE_FRAGMENTS: u16 = 0x2000;

/// Which fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    /// First ones, each of another packet: their ports are to be remembered.
    First,
    /// Later ones whose first one nobody has seen.
    Later,
}

/// How a packet is broken. Each way ends at another check.
const FAULTS: [fn(&mut [u8]); 8] = [
    |frame| frame[IP] = 0x65,        // version 6 behind the EtherType of version 4
    |frame| frame[IP] = 0x44,        // a header of 16 bytes
    |frame| frame[TOTAL_LEN] = 0xff, // longer than the frame
    |frame| frame[CHECKSUM] ^= 0xff, // wrong header checksum
    |frame| frame[12] = 0x12,        // unknown EtherType
    |frame| frame[12..14].fill(0),   // a length in place of an EtherType
    |frame| frame[..12].fill(0xff),  // for everybody, from everybody
    overlong_transport,
];

/// A transport header that ends behind the packet: TCP options, or the length of a UDP datagram.
fn overlong_transport(frame: &mut [u8]) {
    let (at, value) = if frame[IP + 9] == proto::UDP { (IP + 20 + 4, 0xff) } else { (IP + 20 + 12, 0xf0) };
    frame[at] = value;
}

impl Traffic {
    /// Fills all slots with fragments of requests.
    pub fn fill_fragments(&mut self, which: Fragments) {
        self.fill_requests();
        for (id, packet) in self.packets.iter_mut().enumerate() {
            let frame = self.arena.bytes_mut(&mut packet.frame);
            // All but the last fragment carry a multiple of 8 bytes (RFC 791 §3.1): what is left of the frame is padding.
            frame[TOTAL_LEN..][..2].copy_from_slice(&44u16.to_be_bytes());
            // Later ones have identifications of their own, or their first one would have been seen.
            let (field, ids) = if which == Fragments::First { (MORE_FRAGMENTS, 0) } else { (100_u16, 0x8000) };
            frame[FRAGMENT_ID..][..2].copy_from_slice(&(ids + id as u16).to_be_bytes());
            frame[FRAGMENT_FIELD..][..2].copy_from_slice(&field.to_be_bytes());
            frame[CHECKSUM..][..2].fill(0);
            let sum = checksum::full(&frame[IP..IP + 20], 0);
            frame[CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
        }
    }

    /// Fills all slots with packets that contradict themselves, eight ways in turn.
    pub fn fill_malformed(&mut self) {
        self.fill_requests();
        for (packet, fault) in self.packets.iter_mut().zip(FAULTS.iter().cycle()) {
            fault(self.arena.bytes_mut(&mut packet.frame));
        }
    }
}

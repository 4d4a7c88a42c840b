//! TCP as seen from the middle (RFC 9293 §3.3.2; states and transitions of Linux `nf_conntrack_proto_tcp.c`).
//!
//! Follows flags, and asks for sequence numbers only where a segment would end a connection or answer its opening: who cannot see
//! it cannot name them (RFC 5961 §3, RFC 9293 §3.10.7.3). Of all else, a packet outside the window is the receiver's to refuse.
//! The numbers are kept for IPv4 alone, whose line has room. Never decides a verdict.

use super::flow::FlowDir;
use super::state::FlowState as S;

/// Sequence and acknowledgment number of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of the first byte.
    pub seq: u32,
    /// The next byte that its sender expects.
    pub ack: u32,
}

impl Numbers {
    /// From the eight bytes of a header that hold them, as a number in network byte order.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self { seq: (bits >> 32) as u32, ack: bits as u32 }
    }
    /// The inverse of [`from_bits`](Self::from_bits).
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        (self.seq as u64) << 32 | self.ack as u64
    }
    /// Tells whether this segment starts where `other` does, or behind it (RFC 9293 §3.4, modulo 2^32). One that is further back
    /// than a window is none sent again, but of a connection that took the ports of one whose end nobody saw, or `other` was a
    /// stranger's: then it counts as well.
    #[inline(always)]
    pub const fn is_as_far_as(self, other: Self) -> bool {
        other.seq.wrapping_sub(self.seq).wrapping_sub(1) >= WINDOW_MAX
    }
}

/// What a segment is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// A part of it.
    Belongs,
    /// About an earlier connection of the same ports, or not sure to be of this one: its receiver must see it, and it changes nothing.
    Foreign,
    /// Not from its end (E2.44).
    Invalid,
}

/// Data that a SYN may carry (RFC 7413), and how far a sender may have come beyond what was seen of it when its reset is believed.
const SYN_DATA_MAX: u32 = 0xffff;
const AHEAD_MAX: u32 = 1 << 18;
/// Bytes that may be under way, and so lost before they were seen. RFC 7323 §2.3 allows 16 times as many; nobody sets that up.
const WINDOW_MAX: u32 = 1 << 26;

/// Judges a segment by its numbers. `own` and `peer` are those of the segments of its direction and of the other that went furthest.
pub(super) const fn fit(state: S, dir: FlowDir, flags: u8, numbers: Numbers, own: Numbers, peer: Numbers) -> Fit {
    match (state, dir) {
        // The answer to another SYN, or a refusal of one.
        (S::SynSent, FlowDir::Reply) if flags & ACK != 0 && flags & (SYN | RST) != 0 => {
            let acked = numbers.ack.wrapping_sub(peer.seq.wrapping_add(1));
            if acked <= SYN_DATA_MAX { Fit::Belongs } else { Fit::Invalid }
        }
        // The client's answer to the server of an earlier connection, which acknowledged what this SYN did not send.
        (S::SynSent, FlowDir::Original) if flags & RST != 0 => {
            if numbers.seq.wrapping_sub(own.seq) <= SYN_DATA_MAX {
                Fit::Belongs
            } else {
                Fit::Foreign
            }
        }
        // Without an acknowledgment nothing shows what it refuses, and a client that opens ignores it.
        (S::SynSent, FlowDir::Reply) if flags & RST != 0 => Fit::Foreign,
        (S::Established, _) if flags & RST != 0 => {
            let (acked, ahead) = (numbers.seq.wrapping_sub(peer.ack), numbers.seq.wrapping_sub(own.seq));
            let is_ahead = ahead >> 31 == 0;
            // The refusal of a SYN by who has forgotten the connection (RFC 9293 §3.5.2); who sent none ignores it.
            if numbers.seq == 0 && flags & ACK != 0 && (acked >> 31 != 0 || is_ahead && ahead > AHEAD_MAX) {
                Fit::Foreign
            // What the peer has acknowledged lies behind who resets (Linux's `td_maxack`).
            } else if acked >> 31 != 0 || is_ahead && ahead > WINDOW_MAX {
                Fit::Invalid
            // What came before it may be lost: the peer then asks, and the answer is exact (RFC 5961 §3.2).
            } else if is_ahead && ahead > AHEAD_MAX {
                Fit::Foreign
            } else {
                Fit::Belongs
            }
        }
        _ => Fit::Belongs,
    }
}

/// FIN (RFC 9293 §3.1).
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// ACK.
pub const ACK: u8 = 0x10;

/// Tells whether a segment can open a connection: SYN without ACK, RST and FIN. All else without an entry is invalid (E2.44).
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// The state after one more segment.
pub(super) const fn after(state: S, dir: FlowDir, flags: u8) -> S {
    if flags & RST != 0 {
        return S::Close;
    }
    match flags & (SYN | ACK | FIN) {
        SYN => match (state, dir) {
            // A client that reuses its port before the table forgot the old connection; see `is_reopened_by`.
            (S::TimeWait | S::Close, FlowDir::Original) => S::SynSent,
            // Simultaneous open (RFC 9293 §3.5): each side answers with SYN and ACK next.
            (S::SynSent, FlowDir::Reply) => S::SynRecv,
            _ => state,
        },
        flags if flags & SYN != 0 => match (state, dir) {
            (S::SynSent, FlowDir::Reply) => S::SynRecv,
            _ => state,
        },
        flags if flags & FIN != 0 => match state {
            S::SynSent | S::TimeWait | S::Close => state,
            S::SynRecv | S::Established => S::FinWait,
            _ => S::LastAck,
        },
        ACK => match (state, dir) {
            (S::SynRecv, FlowDir::Original) => S::Established,
            (S::FinWait, _) => S::CloseWait,
            (S::LastAck, _) => S::TimeWait,
            _ => state,
        },
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::FlowDir::{Original, Reply};
    use super::*;

    fn walk(steps: &[(FlowDir, u8)]) -> S {
        steps.iter().fold(S::SynSent, |state, (dir, flags)| after(state, *dir, *flags))
    }

    #[test]
    fn a_connection_opens_and_closes_through_all_states() {
        let open = [(Reply, SYN | ACK), (Original, ACK)];
        assert_eq!(walk(&open[..1]), S::SynRecv);
        assert_eq!(walk(&open), S::Established);
        let close = [open[0], open[1], (Reply, FIN | ACK), (Original, ACK), (Original, FIN | ACK), (Reply, ACK)];
        let states = [S::FinWait, S::CloseWait, S::LastAck, S::TimeWait];
        for (count, state) in (3..).zip(states) {
            assert_eq!(walk(&close[..count]), state);
        }
    }

    #[test]
    fn a_fin_that_is_sent_again_while_one_side_still_talks_does_not_close_early() {
        let half_closed = [(Reply, SYN | ACK), (Original, ACK), (Original, FIN | ACK), (Reply, ACK), (Reply, ACK)];
        assert_eq!(walk(&half_closed), S::CloseWait);
    }

    #[test]
    fn a_reset_closes_from_every_state_and_nothing_but_a_client_syn_revives() {
        for state in [S::SynSent, S::SynRecv, S::Established, S::FinWait, S::CloseWait, S::LastAck, S::TimeWait, S::Close] {
            assert_eq!(after(state, Reply, RST), S::Close);
            assert_eq!(after(state, Original, RST | ACK), S::Close);
        }
        for flags in [ACK, FIN | ACK, SYN | ACK, 0] {
            assert_eq!(after(S::Close, Original, flags), S::Close);
        }
        assert_eq!(after(S::Close, Original, SYN), S::SynSent);
    }

    fn judge(state: S, dir: FlowDir, flags: u8, seq: u32, ack: u32) -> Fit {
        // The client sent up to 1100, of which the server acknowledged 1000; the server is at 0 and the client has read 0xffff_fff0.
        let (client, server) = (Numbers { seq: 1100, ack: 0xffff_fff0 }, Numbers { seq: 0, ack: 1000 });
        let (own, peer) = if dir == Original { (client, server) } else { (server, client) };
        fit(state, dir, flags, Numbers { seq, ack }, own, peer)
    }

    #[test]
    fn an_established_connection_is_reset_only_by_who_knows_where_it_is_rfc_5961_3() {
        let client = |seq| judge(S::Established, Original, RST, seq, 0);
        for seq in [1000, 1001, 1100, 1100 + AHEAD_MAX] {
            assert_eq!(client(seq), Fit::Belongs, "{seq}");
        }
        for seq in [999, 0, 1101 + WINDOW_MAX, 1 << 30] {
            assert_eq!(client(seq), Fit::Invalid, "{seq}");
        }
        // What came before is lost: the server asks, and the client answers with 1000.
        assert_eq!([1101 + AHEAD_MAX, 1100 + WINDOW_MAX].map(client), [Fit::Foreign; 2]);
        let server = |seq| judge(S::Established, Reply, RST | ACK, seq, 1000);
        assert_eq!([0xffff_fff0, 0, 7].map(server), [Fit::Belongs; 3]);
        assert_eq!([0xffff_ffef, 0xff00_0000, WINDOW_MAX + 1].map(server), [Fit::Invalid; 3]);
        // Who has forgotten the connection refuses the client's new SYN.
        assert_eq!(judge(S::Established, Original, RST | ACK, 0, 7), Fit::Foreign);
        // A connection that ends is ended by any; data and FIN are the receiver's to judge.
        assert_eq!(judge(S::CloseWait, Reply, RST, 0xff00_0000, 0), Fit::Belongs);
        assert_eq!(judge(S::Established, Reply, FIN | ACK, 0xff00_0000, 0), Fit::Belongs);
    }

    #[test]
    fn an_opening_is_answered_only_by_who_saw_its_syn_rfc_9293_3_10_7_3() {
        for flags in [SYN | ACK, RST | ACK] {
            let server = |ack| judge(S::SynSent, Reply, flags, 5, ack);
            assert_eq!([1101, 1101 + SYN_DATA_MAX].map(server), [Fit::Belongs; 2]);
            assert_eq!([1100, 1102 + SYN_DATA_MAX, 0].map(server), [Fit::Invalid; 3]);
        }
        assert_eq!(judge(S::SynSent, Reply, ACK, 5, 77), Fit::Belongs, "a challenge");
        assert_eq!(judge(S::SynSent, Reply, RST, 5, 0), Fit::Foreign, "an answer to a late segment of an earlier connection");
        let client = |seq| judge(S::SynSent, Original, RST, seq, 0);
        assert_eq!([1100, 1101].map(client), [Fit::Belongs; 2]);
        assert_eq!([1099, 643_160_523].map(client), [Fit::Foreign; 2]);
    }

    #[test]
    fn numbers_follow_what_goes_furthest_and_a_connection_in_the_place_of_another() {
        let is_as_far = |seq: u32, than| Numbers { seq, ack: 0 }.is_as_far_as(Numbers { seq: than, ack: 0 });
        for than in [0u32, 5, 1 << 31, u32::MAX] {
            for ahead in [0, 1, WINDOW_MAX, 1 << 31, (1 << 31) + 1] {
                assert!(is_as_far(than.wrapping_add(ahead), than), "{ahead} ahead of {than}");
            }
            assert!([1, 1448, WINDOW_MAX].iter().all(|back| !is_as_far(than.wrapping_sub(*back), than)), "sent again");
            assert!(is_as_far(than.wrapping_sub(WINDOW_MAX + 1), than), "another connection");
        }
    }

    #[test]
    fn a_simultaneous_open_becomes_established() {
        assert_eq!(walk(&[(Reply, SYN), (Original, SYN | ACK), (Reply, SYN | ACK), (Original, ACK)]), S::Established);
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(opens(SYN));
        assert!(opens(SYN | 0xc0), "ECN setup (RFC 3168 §6.1.1)");
        for flags in [0, ACK, SYN | ACK, SYN | RST, SYN | FIN, RST, FIN | ACK] {
            assert!(!opens(flags), "{flags:#x}");
        }
    }
}

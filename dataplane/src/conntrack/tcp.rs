//! TCP as seen from the middle (RFC 9293 §3.3.2; states and transitions of Linux `nf_conntrack_proto_tcp.c`).
//!
//! Follows flags only. Sequence numbers are not checked: a packet outside the window is the receiver's to refuse, and data
//! that is sent again or a reset that is not exact must pass. Never decides a verdict.

use super::flow::FlowDir;
use super::state::FlowState as S;

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

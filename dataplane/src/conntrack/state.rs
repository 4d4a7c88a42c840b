//! States of a connection, of all protocols in one set of 16.

/// The state of a connection. TCP's are those of Linux (`nf_conntrack_proto_tcp.c`), which follow RFC 9293 as seen from the
/// middle; SCTP's likewise; other protocols know only whether an answer was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// Not TCP or SCTP: no reply yet.
    Unreplied = 0,
    /// Not TCP or SCTP: a reply was seen.
    Replied = 1,
    /// TCP: SYN seen.
    SynSent = 2,
    /// TCP: SYN and ACK seen in answer.
    SynRecv = 3,
    /// TCP: open.
    Established = 4,
    /// TCP: one side has sent FIN.
    FinWait = 5,
    /// TCP: that FIN was acknowledged.
    CloseWait = 6,
    /// TCP: both have sent FIN.
    LastAck = 7,
    /// TCP: both FINs were acknowledged.
    TimeWait = 8,
    /// TCP: reset.
    Close = 9,
    /// SCTP: INIT seen.
    CookieWait = 10,
    /// SCTP: COOKIE ECHO seen.
    CookieEchoed = 11,
    /// SCTP: open.
    SctpEstablished = 12,
    /// SCTP: SHUTDOWN seen.
    ShutdownSent = 13,
    /// SCTP: SHUTDOWN ACK seen.
    ShutdownAckSent = 14,
    /// SCTP: aborted or shut down.
    SctpClosed = 15,
}

impl FlowState {
    pub(super) const fn from_bits(bits: u64) -> Self {
        match bits & 15 {
            0 => Self::Unreplied,
            1 => Self::Replied,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::Established,
            5 => Self::FinWait,
            6 => Self::CloseWait,
            7 => Self::LastAck,
            8 => Self::TimeWait,
            9 => Self::Close,
            10 => Self::CookieWait,
            11 => Self::CookieEchoed,
            12 => Self::SctpEstablished,
            13 => Self::ShutdownSent,
            14 => Self::ShutdownAckSent,
            _ => Self::SctpClosed,
        }
    }
    /// The name that conntrack-tools print, for protocols that have states.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Unreplied | Self::Replied => None,
            Self::SynSent => Some("SYN_SENT"),
            Self::SynRecv => Some("SYN_RECV"),
            Self::Established | Self::SctpEstablished => Some("ESTABLISHED"),
            Self::FinWait => Some("FIN_WAIT"),
            Self::CloseWait => Some("CLOSE_WAIT"),
            Self::LastAck => Some("LAST_ACK"),
            Self::TimeWait => Some("TIME_WAIT"),
            Self::Close => Some("CLOSE"),
            Self::CookieWait => Some("COOKIE_WAIT"),
            Self::CookieEchoed => Some("COOKIE_ECHOED"),
            Self::ShutdownSent => Some("SHUTDOWN_SENT"),
            Self::ShutdownAckSent => Some("SHUTDOWN_ACK_SENT"),
            Self::SctpClosed => Some("CLOSED"),
        }
    }
    /// Tells whether both sides have spoken and none has ended it: such flows are never evicted.
    pub const fn is_assured(self) -> bool {
        matches!(self, Self::Replied | Self::Established | Self::SctpEstablished)
    }
    /// Tells whether no packet of the reply direction was seen yet. Such flows die first when the table is full.
    pub const fn is_unreplied(self) -> bool {
        matches!(self, Self::Unreplied | Self::SynSent | Self::CookieWait)
    }
}

use super::flow::FlowDir;
use super::{sctp, tcp};
use crate::model::proto;

impl FlowState {
    /// The state after the first packet of a flow, or `None` where such a packet opens none (E2.44). `flags`: TCP flags, or
    /// the type of the first SCTP chunk; else 0.
    #[inline]
    pub fn opening(protocol: u8, flags: u8) -> Option<Self> {
        // Which protocol comes next cannot be foreseen, so it is no branch.
        let state = match protocol {
            proto::TCP => Self::SynSent,
            proto::SCTP => Self::CookieWait,
            _ => Self::Unreplied,
        };
        let opens = ((protocol != proto::TCP) | tcp::opens(flags)) & ((protocol != proto::SCTP) | sctp::opens(flags));
        opens.then_some(state)
    }
    /// The state after one more packet, which went in direction `dir`.
    pub fn after(self, protocol: u8, dir: FlowDir, flags: u8) -> Self {
        match protocol {
            proto::TCP => tcp::after(self, dir, flags),
            proto::SCTP => sctp::after(self, dir, flags),
            _ if dir == FlowDir::Reply => Self::Replied,
            _ => self,
        }
    }
    /// Tells whether the connection has ended and only its entry is left.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close | Self::SctpClosed)
    }
    /// Tells whether a packet in direction `dir` leaves the state as it is, and can open nothing, if it has none of the
    /// [`UNSTEADY_FLAGS`](Self::UNSTEADY_FLAGS): so it is with nearly all packets. Where not, [`after`](Self::after) may still say the
    /// same state.
    #[inline(always)]
    pub const fn is_steady(self, dir: FlowDir) -> bool {
        match self {
            Self::Replied | Self::Established => true,
            // Traffic that nobody answers.
            Self::Unreplied => matches!(dir, FlowDir::Original),
            _ => false,
        }
    }
    /// TCP flags that may change a state.
    pub const UNSTEADY_FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;
    /// Tells whether a packet that could open a flow takes the place of this one, which is over: the caller removes the flow
    /// and inserts a new one (a TCP client that reuses its port; RFC 9293 §3.6.1, RFC 6191).
    pub fn is_reopened_by(self, protocol: u8, flags: u8) -> bool {
        match protocol {
            proto::TCP => matches!(self, Self::TimeWait | Self::Close) && tcp::opens(flags),
            proto::SCTP => self == Self::SctpClosed && sctp::opens(flags),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_asks_opens_a_flow_e2_44() {
        let opens = |protocol, flags| FlowState::opening(protocol, flags).is_some();
        for (protocol, kinds) in [(proto::TCP, &[tcp::SYN][..]), (proto::SCTP, &[sctp::chunk::INIT])] {
            let all = [tcp::SYN, tcp::ACK, tcp::FIN, tcp::RST, tcp::SYN | tcp::ACK, 0, u8::MAX, sctp::chunk::INIT, sctp::chunk::INIT_ACK];
            for kind in all {
                assert_eq!(opens(protocol, kind), kinds.contains(&kind), "{protocol} {kind}");
            }
        }
        assert!(opens(proto::UDP, 0) && opens(47, 0));
    }

    #[test]
    fn a_steady_packet_changes_nothing() {
        for (state, protocol) in [
            (FlowState::Unreplied, proto::UDP),
            (FlowState::Unreplied, proto::ICMP),
            (FlowState::Replied, proto::UDP),
            (FlowState::Replied, proto::ICMP),
            (FlowState::Established, proto::TCP),
        ] {
            for dir in [FlowDir::Original, FlowDir::Reply] {
                for flags in (0..=u8::MAX).filter(|flags| state.is_steady(dir) && flags & FlowState::UNSTEADY_FLAGS == 0) {
                    assert_eq!(state.after(protocol, dir, flags), state);
                    assert!(!state.is_reopened_by(protocol, flags));
                }
            }
        }
        let steady = |dir| (0..16).map(FlowState::from_bits).filter(|state| state.is_steady(dir)).count();
        assert_eq!((steady(FlowDir::Original), steady(FlowDir::Reply)), (3, 2));
    }
}

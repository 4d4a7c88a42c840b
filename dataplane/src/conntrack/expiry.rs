//! How long a flow lives without packets.
//!
//! Where Linux, kube-proxy and the RFCs differ, an RFC's MUST wins (RFC 4787 and RFC 5382 for translators), then kube-proxy's
//! defaults (E2.43), then Linux's (`nf_conntrack_proto_*.c`).

use super::state::FlowState as S;
use crate::model::proto;

const SECOND: u32 = 1000;
const MINUTE: u32 = 60 * SECOND;
const HOUR: u32 = 60 * MINUTE;

/// kube-proxy's `conntrack-tcp-timeout-established`; RFC 5382 REQ-5 asks for 2 h 4 min at least.
const TCP_ESTABLISHED: u32 = 24 * HOUR;
const _: () = assert!(TCP_ESTABLISHED >= 2 * HOUR + 4 * MINUTE);
/// kube-proxy's `conntrack-tcp-timeout-close-wait`: one side has closed, the other may still send.
const TCP_CLOSE_WAIT: u32 = HOUR;
/// Opening and closing: RFC 5382 REQ-5 asks for 4 minutes at least, where Linux has 30 to 120 s. Opening flows without a
/// reply die first when the table is full, so a flood of SYNs does not live off this.
const TCP_TRANSITORY: u32 = 4 * MINUTE;
/// After a reset both ends have forgotten the connection (Linux: 10 s).
const TCP_CLOSE: u32 = 10 * SECOND;

/// RFC 4787 REQ-5: 2 minutes at least ...
const UDP_UNREPLIED: u32 = 2 * MINUTE;
/// ... less only for well-known ports (REQ-5a): a DNS query without an answer; Linux's 30 s.
const UDP_UNREPLIED_WELL_KNOWN: u32 = 30 * SECOND;
/// RFC 4787 REQ-5 recommends 5 minutes or more.
const UDP_REPLIED: u32 = 5 * MINUTE;
const WELL_KNOWN_PORT_END: u16 = 1024;

/// Linux's; RFC 5508 REQ-2 asks for more than 60 s.
const ICMP: u32 = MINUTE + SECOND;
/// Linux's for protocols that it knows nothing of.
const GENERIC: u32 = 10 * MINUTE;

/// Linux's: longer than SCTP's own heartbeat can fail (RFC 9260 §8.3).
const SCTP_ESTABLISHED: u32 = 210 * SECOND;
const SCTP_OPENING: u32 = 30 * SECOND;
const SCTP_SHUTDOWN: u32 = 30 * SECOND;
const SCTP_CLOSED: u32 = 10 * SECOND;

/// A flow without a reply that lives this long may be evicted while the table is nearly full: the peer had time to answer.
pub(super) const EVICTABLE_MS: u32 = SECOND;

/// Milliseconds that a flow lives after its last packet. `dport` is where the first packet went.
pub const fn timeout_ms(state: S, protocol: u8, dport: u16) -> u32 {
    match state {
        S::Unreplied | S::Replied => match protocol {
            proto::UDP if matches!(state, S::Replied) => UDP_REPLIED,
            proto::UDP if dport < WELL_KNOWN_PORT_END => UDP_UNREPLIED_WELL_KNOWN,
            proto::UDP => UDP_UNREPLIED,
            proto::ICMP | proto::ICMPV6 => ICMP,
            _ => GENERIC,
        },
        S::Established => TCP_ESTABLISHED,
        S::CloseWait => TCP_CLOSE_WAIT,
        S::SynSent | S::SynRecv | S::FinWait | S::LastAck | S::TimeWait => TCP_TRANSITORY,
        S::Close => TCP_CLOSE,
        S::CookieWait | S::CookieEchoed => SCTP_OPENING,
        S::SctpEstablished => SCTP_ESTABLISHED,
        S::ShutdownSent | S::ShutdownAckSent => SCTP_SHUTDOWN,
        S::SctpClosed => SCTP_CLOSED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_shorter_than_the_rfcs_allow() {
        for state in [S::SynSent, S::SynRecv, S::FinWait, S::CloseWait, S::LastAck, S::TimeWait] {
            assert!(timeout_ms(state, proto::TCP, 80) >= 4 * MINUTE, "RFC 5382 REQ-5: {state:?}");
        }
        assert!(timeout_ms(S::Established, proto::TCP, 80) >= 2 * HOUR + 4 * MINUTE, "RFC 5382 REQ-5");
        for state in [S::Unreplied, S::Replied] {
            assert!(timeout_ms(state, proto::UDP, 5353) >= 2 * MINUTE, "RFC 4787 REQ-5");
            assert!(timeout_ms(state, proto::ICMP, 0) > MINUTE, "RFC 5508 REQ-2");
        }
        assert!(timeout_ms(S::Unreplied, proto::UDP, 53) < MINUTE);
    }
}

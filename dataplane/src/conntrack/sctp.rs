//! SCTP as seen from the middle (RFC 9260 §4; states and transitions of Linux `nf_conntrack_proto_sctp.c`).
//!
//! Follows the type of a packet's first chunk. Verification tags are not checked; associations with several addresses are
//! one flow per pair of addresses.

use super::flow::FlowDir;
use super::state::FlowState as S;

/// Chunk types (RFC 9260 §3.2).
pub mod chunk {
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// Answers INIT.
    pub const INIT_ACK: u8 = 2;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Begins to end an association.
    pub const SHUTDOWN: u8 = 7;
    /// Answers SHUTDOWN.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Gives the cookie back.
    pub const COOKIE_ECHO: u8 = 10;
    /// Opens for good.
    pub const COOKIE_ACK: u8 = 11;
    /// Ends for good.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Tells whether a packet with this first chunk can open an association.
pub const fn opens(chunk_type: u8) -> bool {
    chunk_type == chunk::INIT
}

/// The state after one more packet.
pub(super) const fn after(state: S, dir: FlowDir, chunk_type: u8) -> S {
    match (chunk_type, state, dir) {
        (chunk::ABORT | chunk::SHUTDOWN_COMPLETE, ..) => S::SctpClosed,
        (chunk::INIT, S::SctpClosed, FlowDir::Original) => S::CookieWait,
        (chunk::COOKIE_ECHO, S::CookieWait, FlowDir::Original) => S::CookieEchoed,
        (chunk::COOKIE_ACK, S::CookieWait | S::CookieEchoed, FlowDir::Reply) => S::SctpEstablished,
        (chunk::SHUTDOWN, S::CookieEchoed | S::SctpEstablished, _) => S::ShutdownSent,
        (chunk::SHUTDOWN_ACK, S::SctpEstablished | S::ShutdownSent, _) => S::ShutdownAckSent,
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::FlowDir::{Original, Reply};
    use super::*;

    #[test]
    fn an_association_opens_and_shuts_down() {
        let steps = [
            (Reply, chunk::INIT_ACK, S::CookieWait),
            (Original, chunk::COOKIE_ECHO, S::CookieEchoed),
            (Reply, chunk::COOKIE_ACK, S::SctpEstablished),
            (Original, 0, S::SctpEstablished),
            (Reply, chunk::SHUTDOWN, S::ShutdownSent),
            (Original, chunk::SHUTDOWN_ACK, S::ShutdownAckSent),
            (Reply, chunk::SHUTDOWN_COMPLETE, S::SctpClosed),
        ];
        let mut state = S::CookieWait;
        for (dir, chunk_type, next) in steps {
            state = after(state, dir, chunk_type);
            assert_eq!(state, next);
        }
        assert!(opens(chunk::INIT) && !opens(0));
    }

    #[test]
    fn an_abort_closes_from_every_state() {
        for state in [S::CookieWait, S::CookieEchoed, S::SctpEstablished, S::ShutdownSent, S::ShutdownAckSent] {
            assert_eq!(after(state, Reply, chunk::ABORT), S::SctpClosed);
        }
    }
}

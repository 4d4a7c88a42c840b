//! IPv6 extension headers (RFC 8200 §4): a bounded walk to the transport header.

use crate::verdict::DropReason;
use crate::wire::{chunk, ipv6};

/// Extension headers in one packet; more has no honest use and is a way to hide the transport header (RFC 8504 §5.3).
const HEADERS_MAX: usize = 8;

/// What stands between the IPv6 header and the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The protocol behind the chain.
    pub(crate) proto: u8,
    /// Length of the chain.
    pub(crate) len: usize,
    /// The fragment header, unless it is absent or atomic.
    pub(crate) fragment: Option<Fragment>,
}

/// A fragment header that says that this is a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) offset: usize,
    pub(crate) more: bool,
    pub(crate) id: u32,
}

/// Walks the chain in `payload`, which starts behind the IPv6 header whose next header is `next`.
///
/// ESP and "no next header" end the chain like a transport protocol. A later fragment ends it too: what follows is
/// payload, and `proto` is what the fragment header names.
pub(crate) fn walk(payload: &[u8], next: u8) -> Result<Chain, DropReason> {
    let mut chain = Chain { proto: next, len: 0, fragment: None };
    let mut fragment_seen = false;
    for index in 0..=HEADERS_MAX {
        if !matches!(chain.proto, ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::FRAGMENT | ipv6::DESTINATION | ipv6::AUTHENTICATION) {
            return Ok(chain);
        }
        // Part of what is fragmented: where the transport header starts in it, later fragments would decide, which name the
        // same protocol and could write over its ports.
        if chain.fragment.is_some() {
            return Err(DropReason::InvalidIpv6Extension);
        }
        let header: &[u8; 8] = chunk(payload, chain.len).ok_or(DropReason::InvalidIpv6Extension)?;
        let len = match chain.proto {
            ipv6::FRAGMENT => 8,
            ipv6::AUTHENTICATION => (usize::from(header[1]) + 2) * 4, // RFC 4302 §2.2: in words of 4 bytes, minus 2
            _ => (usize::from(header[1]) + 1) * 8,
        };
        let allowed = match chain.proto {
            ipv6::HOP_BY_HOP => index == 0, // RFC 8200 §4.1
            // Type 0 is abolished (RFC 5095). With segments left, the destination that policy would judge is not the last.
            ipv6::ROUTING => header[2] != 0 && header[3] == 0,
            ipv6::FRAGMENT => !fragment_seen,
            _ => true,
        };
        if !allowed || chain.len + len > payload.len() {
            return Err(DropReason::InvalidIpv6Extension);
        }
        if chain.proto == ipv6::FRAGMENT {
            fragment_seen = true;
            let field = u16::from_be_bytes([header[2], header[3]]);
            let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let fragment = Fragment { offset: usize::from(field & 0xfff8), more: field & 1 == 1, id };
            // RFC 6946 §4: an atomic fragment is a whole packet.
            if fragment.offset > 0 || fragment.more {
                chain.fragment = Some(fragment);
            }
        }
        chain.proto = header[0];
        chain.len += len;
        if chain.fragment.is_some_and(|f| f.offset > 0) {
            return Ok(chain);
        }
    }
    Err(DropReason::InvalidIpv6Extension)
}

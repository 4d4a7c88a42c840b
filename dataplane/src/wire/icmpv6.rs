//! ICMP for IPv6 (RFC 4443). Length and places as in [`icmp`](super::icmp).

/// Type: destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Type: packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Type: time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Type: echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Type: echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Type: router solicitation (RFC 4861 §4.1), first of the discovery types.
pub const ROUTER_SOLICITATION: u8 = 133;
/// Type: neighbour solicitation (RFC 4861 §4.3).
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Type: neighbour advertisement (RFC 4861 §4.4).
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Type: redirect (RFC 4861 §4.5), last of the discovery types.
pub const REDIRECT: u8 = 137;
/// Type: node information query (RFC 4620 §4).
pub const NODE_INFORMATION: u8 = 139;

/// Code of unreachable: communication administratively prohibited.
pub const PROHIBITED: u8 = 1;
/// Code of unreachable: address.
pub const ADDRESS: u8 = 3;
/// Code of unreachable: port.
pub const PORT: u8 = 4;

/// Tells whether the type is an error (RFC 4443 §2.1).
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}

/// Tells whether the type asks for an answer.
pub const fn is_query(kind: u8) -> bool {
    matches!(kind, ECHO_REQUEST | NODE_INFORMATION)
}

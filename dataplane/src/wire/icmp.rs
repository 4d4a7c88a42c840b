//! ICMP for IPv4 (RFC 792).

/// Length of the header: type, code, checksum and four bytes whose meaning depends on the type.
pub const LEN: usize = 8;
/// Where the checksum stands.
pub const CHECKSUM: usize = 2;
/// Where the identifier of an echo stands.
pub const IDENTIFIER: usize = 4;

/// Type: echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Type: source quench, abolished by RFC 6633.
pub const SOURCE_QUENCH: u8 = 4;
/// Type: redirect.
pub const REDIRECT: u8 = 5;
/// Type: echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type: time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Type: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Type: timestamp request.
pub const TIMESTAMP: u8 = 13;
/// Type: information request.
pub const INFORMATION: u8 = 15;
/// Type: address mask request (RFC 950).
pub const ADDRESS_MASK: u8 = 17;

/// Code of unreachable: host.
pub const HOST: u8 = 1;
/// Code of unreachable: port.
pub const PORT: u8 = 3;
/// Code of unreachable: fragmentation needed (RFC 1191 §4).
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of unreachable: communication administratively prohibited (RFC 1812 §5.2.7.1).
pub const PROHIBITED: u8 = 13;

/// Tells whether the type is an error that reports on the packet it quotes. A redirect quotes one too, but is advice to
/// a host from its first router (RFC 1122 §3.2.2.2) and never about a flow that we translate.
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// Tells whether the type asks for an answer.
pub const fn is_query(kind: u8) -> bool {
    matches!(kind, ECHO_REQUEST | TIMESTAMP | INFORMATION | ADDRESS_MASK)
}

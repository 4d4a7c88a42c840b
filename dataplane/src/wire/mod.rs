//! The wire: the only place that knows network byte order.
//!
//! One file a protocol, and in it the protocol's numbers, its header as a plain struct with `emit` over a fixed array, and
//! the answers that are spoken in it. Everything here works on byte slices in memory, reads no table and never panics,
//! whatever the bytes are. Reading a whole frame is [`parse`](crate::parse)'s work.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod sctp;
pub mod tcp;
pub mod udp;
pub mod vxlan;

/// The `N` bytes at `at`, if the slice is long enough.
#[inline]
pub(crate) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk()
}

/// The `N` bytes at `at` for writing, if the slice is long enough.
#[inline]
pub(crate) fn chunk_mut<const N: usize>(bytes: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(at..)?.first_chunk_mut()
}

/// The 16-bit field at `at`, host order.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    chunk(bytes, at).map(|b| u16::from_be_bytes(*b))
}

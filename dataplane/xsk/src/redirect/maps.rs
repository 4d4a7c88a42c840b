//! Keys and values of the program's maps, in the form in which `bpf/redirect.c` has them.

use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::Key;

use super::UplinkFilter;

/// `struct port` of `bpf/redirect.c`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct PortEntry {
    pub(super) first_slot: u32,
    pub(super) queues: u16,
    pub(super) kind: u16,
}
/// `struct settings`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Settings {
    vtep_port: u16,
    masquerade_low: u16,
    masquerade_high: u16,
    unused: u16,
}
/// `struct address`: IPv6, or IPv4 as `::ffff:a.b.c.d`.
pub(super) type Address = [u8; 16];
/// `struct frontend`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Frontend {
    address: Address,
    port_be: [u8; 2],
    proto: u8,
    unused: u8,
}
const _: () = assert!(size_of::<PortEntry>() == 8 && size_of::<Settings>() == 8 && size_of::<Frontend>() == 20);
// SAFETY: integers without padding; any bits are valid.
unsafe impl Pod for PortEntry {}
// SAFETY: as above.
unsafe impl Pod for Settings {}
// SAFETY: as above.
unsafe impl Pod for Frontend {}

impl Settings {
    pub(super) fn of(filter: &UplinkFilter) -> Self {
        let (masquerade_low, masquerade_high) = filter.masquerade.as_ref().map_or((1, 0), |range| (*range.start(), *range.end()));
        Self { vtep_port: filter.vtep_port.unwrap_or(0), masquerade_low, masquerade_high, unused: 0 }
    }
}

pub(super) fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(super) fn prefix(cidr: &(IpAddr, u8)) -> Key<Address> {
    let bits = if cidr.0.is_ipv4() { 96 + cidr.1.min(32) } else { cidr.1.min(128) };
    Key::new(u32::from(bits), mapped(cidr.0))
}

pub(super) fn frontend(entry: &(IpAddr, u8, u16)) -> Frontend {
    Frontend { address: mapped(entry.0), port_be: entry.2.to_be_bytes(), proto: entry.1, unused: 0 }
}

/// Length and masked address of a prefix.
pub(super) fn canonical(key: &Key<Address>) -> (u32, u128) {
    let bits = key.prefix_len();
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (bits, u128::from_be_bytes(key.data()) & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_differ_in_host_bits_are_one() {
        let of = |text: &str, bits| canonical(&prefix(&(text.parse().unwrap(), bits)));
        assert_eq!(of("10.244.1.0", 16), of("10.244.2.3", 16));
        assert_ne!(of("10.244.0.0", 16), of("10.244.0.0", 17));
        assert_eq!(of("fd00::", 0), of("::", 0));
        assert_eq!(of("10.0.0.1", 32).0, 128);
    }

    #[test]
    fn no_masquerading_matches_no_port() {
        let settings = Settings::of(&UplinkFilter::default());
        assert!(settings.masquerade_low > settings.masquerade_high);
        assert_eq!(settings.vtep_port, 0);
    }
}

//! VXLAN (RFC 7348 §5).

/// Length of the header.
pub const LEN: usize = 8;

/// The I flag: the network identifier is valid.
const VNI_VALID: u8 = 0x08;

/// VXLAN network identifier, 24 bits, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vni(u32);

/// The number does not fit 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no VXLAN network identifier (0 to 16777215)")]
pub struct VniTooLarge(pub u32);

impl TryFrom<u32> for Vni {
    type Error = VniTooLarge;
    fn try_from(number: u32) -> Result<Self, VniTooLarge> {
        if number < 1 << 24 { Ok(Self(number)) } else { Err(VniTooLarge(number)) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

/// Writes the header.
pub fn emit(vni: Vni, out: &mut [u8; LEN]) {
    let [_, v0, v1, v2] = vni.0.to_be_bytes();
    *out = [VNI_VALID, 0, 0, 0, v0, v1, v2, 0];
}

/// Reads the header. Reserved bits must be zero: RFC 7348 would ignore them, but the bits mean something in VXLAN-GPE and
/// group policy, where what follows may be no Ethernet; the kernel drops them too (Linux `drivers/net/vxlan/vxlan_core.c`,
/// `vxlan_rcv`).
pub fn parse(header: &[u8; LEN]) -> Option<Vni> {
    match *header {
        [VNI_VALID, 0, 0, 0, v0, v1, v2, 0] => Some(Vni(u32::from_be_bytes([0, v0, v1, v2]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips_and_reserved_bits_are_refused() {
        let vni = Vni::try_from(0x12_3456).unwrap();
        let mut out = [0xa5; LEN];
        emit(vni, &mut out);
        assert_eq!(out, [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(parse(&out), Some(vni));
        for bit in (0..32).chain(56..64) {
            let mut wrong = out;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&wrong), None, "bit {bit}");
        }
        assert_eq!(Vni::try_from(1 << 24), Err(VniTooLarge(1 << 24)));
    }
}

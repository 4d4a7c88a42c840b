//! SCTP (RFC 9260): the common header and its CRC32c.
//!
//! The CRC covers the whole packet and no pseudo header, so addresses may change freely. A change of ports is folded in
//! without reading the payload: CRCs are linear, and `n` zero bytes behind a difference multiply it by x^(8n).

use crate::wire::{chunk, chunk_mut};

/// Length of the common header: ports, verification tag, checksum.
pub const LEN: usize = 12;
/// Where the checksum stands.
pub const CHECKSUM: usize = 8;

/// The polynomial 0x1EDC6F41 (RFC 9260 Appendix A), bits reflected.
const POLY: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (POLY * (crc & 1));
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

fn step(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// The CRC32c of an SCTP packet, its own field taken as 0; as the field holds it, least significant byte first.
pub fn checksum(packet: &[u8]) -> Option<[u8; 4]> {
    let (header, rest) = (chunk::<CHECKSUM>(packet, 0)?, packet.get(LEN..)?);
    let crc = step(step(step(u32::MAX, header), &[0; 4]), rest);
    Some((!crc).to_le_bytes())
}

/// Completes a checksum that was left to hardware, which shows as 0 (Linux `net/sctp/output.c`, `sctp_packet_pack`).
pub(crate) fn finish(packet: &mut [u8]) -> Option<()> {
    if *chunk::<4>(packet, CHECKSUM)? != [0; 4] {
        return None;
    }
    let value = checksum(packet)?;
    *chunk_mut(packet, CHECKSUM)? = value;
    Some(())
}

/// Replaces the ports and updates the checksum; a wrong one stays wrong. `packet` must be the whole SCTP packet.
pub(crate) fn set_ports(packet: &mut [u8], sport: u16, dport: u16) -> Option<()> {
    let len = packet.len();
    let ports: &mut [u8; 4] = chunk_mut(packet, 0)?;
    let old = *ports;
    let ([s0, s1], [d0, d1]) = (sport.to_be_bytes(), dport.to_be_bytes());
    *ports = [s0, s1, d0, d1];
    let difference = [old[0] ^ s0, old[1] ^ s1, old[2] ^ d0, old[3] ^ d1];
    let shifted = multiply(step(0, &difference), power_of_x8(len.checked_sub(4)?));
    let field: &mut [u8; 4] = chunk_mut(packet, CHECKSUM)?;
    *field = (u32::from_le_bytes(*field) ^ shifted).to_le_bytes();
    Some(())
}

/// Multiplies two polynomials modulo the CRC's; bit 31 is x^0.
const fn multiply(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut factor = b;
    while a != 0 {
        if a & 1 << 31 != 0 {
            product ^= factor;
        }
        factor = (factor >> 1) ^ (POLY * (factor & 1));
        a <<= 1;
    }
    product
}

/// x^(8 * count) modulo the CRC's polynomial, by repeated squaring.
const fn power_of_x8(mut count: usize) -> u32 {
    let mut result = 1 << 31;
    let mut square = 1 << 23;
    while count > 0 {
        if count & 1 == 1 {
            result = multiply(result, square);
        }
        square = multiply(square, square);
        count >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_of_known_text() {
        // The check value of CRC-32C (RFC 3720 §B.4 gives others of the same kind).
        assert_eq!(!step(u32::MAX, b"123456789"), 0xe306_9283);
        assert_eq!(!step(u32::MAX, &[0; 32]), 0x8a91_36aa);
    }

    /// As every SCTP Service needs it (E2.46).
    #[test]
    fn new_ports_update_the_checksum_as_if_computed_anew() {
        for len in (LEN..200).chain([1472, 9000, 65_000]) {
            let mut packet: Vec<u8> = (0..len).map(|n| (n * 31) as u8).collect();
            packet[CHECKSUM..LEN].fill(0);
            finish(&mut packet).unwrap();
            assert_eq!(finish(&mut packet), None, "finished once");
            set_ports(&mut packet, 0xbeef, 0x1234).unwrap();
            assert_eq!(packet[..4], [0xbe, 0xef, 0x12, 0x34]);
            assert_eq!(Some(&packet[CHECKSUM..LEN]), checksum(&packet).as_ref().map(<[u8; 4]>::as_slice), "{len} bytes");
        }
        assert_eq!(set_ports(&mut [0; 11], 1, 2), None);
    }
}

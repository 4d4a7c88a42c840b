//! UDP (RFC 768).

/// Length of the header.
pub const LEN: usize = 8;
/// Where the checksum stands.
pub const CHECKSUM: usize = 6;

/// A UDP header whose checksum is still to be computed, or is left out (0: RFC 768, RFC 6935 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Length of header and data.
    pub len: u16,
}

impl Header {
    /// Writes the header with a checksum of 0.
    pub fn emit(self, out: &mut [u8; LEN]) {
        let [s0, s1] = self.sport.to_be_bytes();
        let [d0, d1] = self.dport.to_be_bytes();
        let [l0, l1] = self.len.to_be_bytes();
        *out = [s0, s1, d0, d1, l0, l1, 0, 0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_written_whole() {
        let mut out = [0xa5; LEN];
        Header { sport: 0x1234, dport: 53, len: 20 }.emit(&mut out);
        assert_eq!(out, [0x12, 0x34, 0, 53, 0, 20, 0, 0]);
    }
}

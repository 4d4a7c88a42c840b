//! TCP (RFC 9293).

/// Length of the header without options.
pub const LEN: usize = 20;
/// Where sequence and acknowledgment number stand, eight bytes.
pub const NUMBERS: usize = 4;
/// Where the checksum stands.
pub const CHECKSUM: usize = 16;

/// Flag: no more data.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset the connection.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgment is significant.
pub const ACK: u8 = 0x10;

/// A TCP header without options, with a window of 0 and the checksum still to be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
}

impl Header {
    /// Writes the header with a checksum of 0.
    pub fn emit(self, out: &mut [u8; LEN]) {
        let [s0, s1] = self.sport.to_be_bytes();
        let [d0, d1] = self.dport.to_be_bytes();
        let [q0, q1, q2, q3] = self.seq.to_be_bytes();
        let [a0, a1, a2, a3] = self.ack.to_be_bytes();
        *out = [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, 0x50, self.flags, 0, 0, 0, 0, 0, 0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_written_whole() {
        let mut out = [0xa5; LEN];
        Header { sport: 80, dport: 0x9000, seq: 0x0102_0304, ack: 0x0506_0708, flags: RST | ACK }.emit(&mut out);
        assert_eq!(out, [0, 80, 0x90, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x14, 0, 0, 0, 0, 0, 0]);
    }
}

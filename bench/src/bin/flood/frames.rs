//! The frames of the load: which flow a number stands for, how its frame is made, and whether what arrived is what was sent.
//!
//! A flow's number gives its source port, its destination address and its destination port, so a receiver needs to be told
//! nothing. Checksums are computed here and not by Weir's own code, which is what is measured.

use std::net::Ipv4Addr;

/// Source ports in use: a prime, so that ports and addresses do not repeat in step and `SOURCE_PORTS * lanes` flows differ in
/// more than the destination address, however a Service translates that.
pub(crate) const SOURCE_PORTS: u64 = 64_007;
const SOURCE_PORT_FIRST: u64 = 1024;
/// Ethernet, IPv4, UDP.
pub(crate) const HEADERS: usize = 14 + 20 + 8;
/// What every payload begins with; the flow's number follows.
const MAGIC: [u8; 4] = *b"flod";
/// The shortest payload that can be told: [`MAGIC`] and the number.
pub(crate) const PAYLOAD_MIN: usize = 12;

/// Where the load goes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Target {
    /// First destination address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) to: Ipv4Addr,
    /// Consecutive destination addresses: flow N goes to the one numbered N modulo this
    #[arg(long, default_value_t = 1)]
    pub(crate) addresses: u32,
    /// First destination port
    #[arg(long)]
    pub(crate) port: u16,
    /// Consecutive destination ports: flow N goes to the one numbered N modulo this
    #[arg(long, default_value_t = 1)]
    pub(crate) ports: u16,
}

/// The source port of a flow.
pub(crate) fn source_port(flow: u64) -> u16 {
    (SOURCE_PORT_FIRST + flow % SOURCE_PORTS) as u16
}

/// A frame that is made into that of one flow after the other.
pub(crate) struct Maker {
    bytes: Vec<u8>,
    target: Target,
    /// Sums of what does not change: the IPv4 header; the UDP header with the pseudo header and the payload.
    header_sum: u64,
    udp_sum: u64,
}

impl Maker {
    /// A frame of `len` bytes as pods count them: with the Ethernet header and a checksum of four bytes that veth leaves out.
    pub(crate) fn new(len: usize, macs: [[u8; 6]; 2], source: Ipv4Addr, target: Target) -> Self {
        let len = len - 4;
        let mut bytes = vec![0; len];
        bytes[..6].copy_from_slice(&macs[1]);
        bytes[6..12].copy_from_slice(&macs[0]);
        bytes[12..14].copy_from_slice(&[0x08, 0x00]);
        // IPv4, 20 bytes, do not fragment, 64 hops, UDP.
        bytes[14..24].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17]);
        bytes[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
        bytes[26..30].copy_from_slice(&source.octets());
        let udp_len = (len - 34) as u16;
        bytes[38..40].copy_from_slice(&udp_len.to_be_bytes());
        pattern(&mut bytes[HEADERS..]);
        let header_sum = sum(&bytes[14..34]);
        let udp_sum = sum(&bytes[26..]) + 17 + u64::from(udp_len);
        Self { bytes, target, header_sum, udp_sum }
    }

    /// The frame of a flow.
    pub(crate) fn make(&mut self, flow: u64) -> &[u8] {
        let Target { to, addresses, port, ports } = self.target;
        let to = Ipv4Addr::from_bits(to.to_bits() + (flow % u64::from(addresses)) as u32).octets();
        let from_port = source_port(flow).to_be_bytes();
        let to_port = (port + (flow % u64::from(ports)) as u16).to_be_bytes();
        let number = flow.to_be_bytes();
        let header = !fold(self.header_sum + sum(&to));
        // All ones for zero, which would mean that there is none (RFC 768).
        let udp = !fold(self.udp_sum + sum(&to) + sum(&from_port) + sum(&to_port) + sum(&number));
        let udp = if udp == 0 { 0xffff } else { udp };
        self.bytes[24..26].copy_from_slice(&header.to_be_bytes());
        self.bytes[30..34].copy_from_slice(&to);
        self.bytes[34..36].copy_from_slice(&from_port);
        self.bytes[36..38].copy_from_slice(&to_port);
        self.bytes[40..42].copy_from_slice(&udp.to_be_bytes());
        self.bytes[HEADERS + MAGIC.len()..HEADERS + PAYLOAD_MIN].copy_from_slice(&number);
        &self.bytes
    }
}

/// Tells what is wrong with a payload that came from this port.
pub(crate) fn check(payload: &[u8], from_port: u16, len: usize) -> Result<(), &'static str> {
    let mut expected = vec![0; payload.len()];
    pattern(&mut expected);
    let number = payload.get(MAGIC.len()..PAYLOAD_MIN).and_then(|bytes| bytes.try_into().ok());
    match number.map(u64::from_be_bytes) {
        _ if payload.len() != len => Err("its length changed"),
        None => Err("it is too short"),
        Some(number) if source_port(number) != from_port => Err("its source port is another flow's"),
        Some(_) if payload[..MAGIC.len()] != expected[..MAGIC.len()] || payload[PAYLOAD_MIN..] != expected[PAYLOAD_MIN..] => {
            Err("its payload changed")
        }
        Some(_) => Ok(()),
    }
}

/// The payload, without the number.
fn pattern(payload: &mut [u8]) {
    for (n, byte) in payload.iter_mut().enumerate() {
        *byte = match n {
            0..4 => MAGIC[n],
            4..PAYLOAD_MIN => 0,
            _ => (n * 7) as u8,
        };
    }
}

/// Adds up 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let whole: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    whole + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { to: Ipv4Addr::new(10, 96, 1, 0), addresses: 10_000, port: 80, ports: 3 };

    fn maker(len: usize) -> Maker {
        Maker::new(len, [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]], Ipv4Addr::new(10, 244, 1, 5), TARGET)
    }

    #[test]
    fn the_checksums_of_every_flow_are_right() {
        for len in [64, 1400] {
            let mut maker = maker(len);
            for flow in [0, 1, 9_999, 10_000, 64_007, u64::from(u32::MAX)] {
                let frame = maker.make(flow);
                assert_eq!(frame.len(), len - 4);
                assert_eq!(fold(sum(&frame[14..34])), 0xffff, "IPv4 header of flow {flow}");
                let pseudo = sum(&frame[26..34]) + 17 + (frame.len() - 34) as u64;
                assert_eq!(fold(pseudo + sum(&frame[34..])), 0xffff, "UDP of flow {flow}");
            }
        }
    }

    #[test]
    fn consecutive_flows_differ_in_their_ports_for_as_long_as_promised() {
        let tuples: std::collections::HashSet<_> = (0..1_000_000_u64).map(|flow| (source_port(flow), flow % 1000)).collect();
        assert_eq!(tuples.len(), 1_000_000);
    }

    #[test]
    fn what_changed_on_the_way_is_told() {
        let (mut maker, flow) = (maker(64), 70_000);
        let payload = maker.make(flow)[HEADERS..].to_vec();
        let port = source_port(flow);
        assert_eq!(check(&payload, port, payload.len()), Ok(()));
        assert!(check(&payload, port + 1, payload.len()).is_err(), "translated");
        assert!(check(&payload[..payload.len() - 1], port, payload.len()).is_err(), "cut");
        assert!(check(&payload[..8], port, 8).is_err(), "too short to tell");
        for n in (0..MAGIC.len()).chain(PAYLOAD_MIN..payload.len()) {
            let mut changed = payload.clone();
            changed[n] ^= 1;
            assert!(check(&changed, port, payload.len()).is_err(), "byte {n}");
        }
    }
}

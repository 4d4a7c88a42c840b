//! Numbers, addresses, times and quoted names as text, appended to a line.
//!
//! `weir replay` writes a line per packet, millions a second: these are what `Display` and serde would write, without their cost
//! per piece.

use std::io::Write;
use std::net::IpAddr;

use weir_dataplane::flows::PacketHead;
use weir_dataplane::model::{Ip, MacAddr};

use super::row::timestamp;

/// As it is.
#[inline]
pub fn text(line: &mut Vec<u8>, text: &str) {
    line.extend_from_slice(text.as_bytes());
}

/// A JSON string.
#[inline]
pub fn quoted(line: &mut Vec<u8>, value: &str) {
    // RFC 8259 §7: quotes, backslashes and control characters are escaped, no others need to be.
    if value.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        // A Vec takes everything, and a string can always be written.
        return drop(serde_json::to_writer(line, value));
    }
    line.push(b'"');
    text(line, value);
    line.push(b'"');
}

/// The name of a field that is not the first of its object.
#[inline]
pub fn field(line: &mut Vec<u8>, key: &str) {
    text(line, ",\"");
    text(line, key);
    text(line, "\":");
}

/// A number in decimal.
#[inline]
pub fn number(line: &mut Vec<u8>, value: u64) {
    text(line, itoa::Buffer::new().format(value));
}

/// An address.
pub fn address(line: &mut Vec<u8>, ip: Ip) {
    match ip.to_std() {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    line.push(b'.');
                }
                number(line, octet.into());
            }
        }
        // Writing to a Vec cannot fail.
        IpAddr::V6(v6) => drop(write!(line, "{v6}")),
    }
}

/// `ip:port`, with brackets around IPv6.
pub fn socket(line: &mut Vec<u8>, ip: Ip, port: u16) {
    let (open, close) = if ip.is_v4() { ("", ":") } else { ("[", "]:") };
    text(line, open);
    address(line, ip);
    text(line, close);
    number(line, port.into());
}

/// `ip:port` where the protocol has ports, else the address alone.
pub fn end(line: &mut Vec<u8>, packet: &PacketHead, ip: Ip, port: u16) {
    if packet.has_ports() { socket(line, ip, port) } else { address(line, ip) }
}

/// `0a:58:0a:f4:01:0a`
pub fn mac(line: &mut Vec<u8>, mac: MacAddr) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    for (index, octet) in mac.0.into_iter().enumerate() {
        if index > 0 {
            line.push(b':');
        }
        line.extend_from_slice(&[HEX[usize::from(octet >> 4)], HEX[usize::from(octet & 15)]]);
    }
}

/// Writes times; those of one second share all but the fraction.
#[derive(Debug, Default)]
pub struct Clock {
    second: Option<u64>,
    /// `2026-01-01T00:00:00`.
    text: String,
}

impl Clock {
    /// As [`timestamp`]: no zeros at the end of the fraction.
    pub fn timestamp(&mut self, line: &mut Vec<u8>, time: u64) {
        let digits = fraction(time);
        text(line, self.second(time));
        let len = 9 - digits.iter().rev().take_while(|digit| **digit == b'0').count();
        if len > 0 {
            line.push(b'.');
            line.extend_from_slice(&digits[..len]);
        }
        line.push(b'Z');
    }

    /// The time of day, microseconds.
    pub fn time_of_day(&mut self, line: &mut Vec<u8>, time: u64) {
        let day = self.second(time);
        text(line, day.split_once('T').map_or(day, |(_, clock)| clock));
        line.push(b'.');
        line.extend_from_slice(&fraction(time)[..6]);
    }

    fn second(&mut self, time: u64) -> &str {
        let second = time / SECOND;
        if self.second != Some(second) {
            self.second = Some(second);
            self.text = timestamp(second * SECOND).trim_end_matches('Z').to_owned();
        }
        &self.text
    }
}

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// The nine digits below the second.
fn fraction(time: u64) -> [u8; 9] {
    let (mut digits, mut written) = ([b'0'; 9], itoa::Buffer::new());
    let nanoseconds = written.format(time % SECOND).as_bytes();
    digits[9 - nanoseconds.len()..].copy_from_slice(nanoseconds);
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut line = Vec::new();
        write(&mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn times_are_written_as_timestamps_are() {
        let mut clock = Clock::default();
        for time in [0, 1, 999_999_999, 1_000_000_000, 1_767_225_600_010_000_000, 1_767_225_600_000_000_100, 1_767_225_601_123_456_789] {
            assert_eq!(written(|line| clock.timestamp(line, time)), timestamp(time));
        }
        assert_eq!(written(|line| clock.time_of_day(line, 1_767_225_661_012_345_678)), "00:01:01.012345");
        assert_eq!(written(|line| clock.time_of_day(line, 1_767_225_661_000_000_000)), "00:01:01.000000");
    }

    #[test]
    fn strings_are_written_as_serde_writes_them() {
        for value in ["", "shop/web-0", "a\"b", "back\\slash", "line\nend", "\u{1}", "größe", "\u{7f}"] {
            assert_eq!(written(|line| quoted(line, value)), serde_json::to_string(value).unwrap());
        }
    }

    #[test]
    fn numbers_and_addresses_are_written_as_display_writes_them() {
        for value in [0, 9, 10, 99, 100, 65_535, u64::MAX] {
            assert_eq!(written(|line| number(line, value)), value.to_string());
        }
        for value in ["10.0.0.1", "255.255.255.255", "::1", "fd00:10:244:1::a", "::ffff:1.2.3.4"] {
            let std: IpAddr = value.parse().unwrap();
            let ip = Ip::from(std);
            assert_eq!(written(|line| address(line, ip)), ip.to_string());
            assert_eq!(written(|line| socket(line, ip, 80)), std::net::SocketAddr::new(ip.to_std(), 80).to_string());
        }
        let value = MacAddr([0x0a, 0x58, 0, 0xff, 0x10, 0x0f]);
        assert_eq!(written(|line| mac(line, value)), value.to_string());
    }
}

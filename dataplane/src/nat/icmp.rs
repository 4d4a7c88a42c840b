//! ICMP errors about translated flows (E2.47, RFC 5508 §4): the quoted packet leads to the flow, and both outer header and
//! quote are translated back, so that the error means something to the one who gets it.
//!
//! The quote may end anywhere after its ports; what is not there is not edited.

use crate::conntrack::Tuple;
use crate::model::{Ip, proto};
use crate::parse::{HeaderFlags, Headers, walk};
use crate::verdict::DropReason;
use crate::wire::checksum::{self, Delta};
use crate::wire::{chunk, chunk_mut, icmp, icmpv6, ipv4, ipv6, tcp, u16_at, udp};

/// A quoted packet: its tuple, and where its headers start in the frame.
struct Quote {
    tuple: Tuple,
    l3: usize,
    l4: usize,
}

/// The tuple of the packet that an ICMP error quotes, as the reporter saw it.
///
/// `None` where this is no error or the quote does not reach the ports. The error belongs to the flow and the direction that
/// has the *inverse* of this tuple.
pub fn quoted_tuple(bytes: &[u8], headers: &Headers) -> Option<Tuple> {
    read_quote(bytes, headers).map(|quote| quote.tuple)
}

fn read_quote(bytes: &[u8], headers: &Headers) -> Option<Quote> {
    if !headers.has(HeaderFlags::ICMP_ERROR) || headers.has(HeaderFlags::FRAGMENT) {
        return None;
    }
    let bytes = bytes.get(..headers.frame_len())?;
    let l3 = usize::from(headers.l4) + icmp::LEN;
    let (src, dst, proto, l4) = if headers.is_v6() {
        let header: &[u8; ipv6::LEN] = chunk(bytes, l3)?;
        let (src, dst) = ipv6::addresses(header);
        if header[0] >> 4 != 6 || src.is_v4() || dst.is_v4() {
            return None;
        }
        let chain = walk(bytes.get(l3 + ipv6::LEN..)?, header[6]).ok()?;
        if chain.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return None;
        }
        (src, dst, chain.proto, l3 + ipv6::LEN + chain.len)
    } else {
        let header: &[u8; ipv4::LEN] = chunk(bytes, l3)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        if header[0] >> 4 != 4 || header_len < ipv4::LEN || fragment & ipv4::OFFSET_MASK != 0 {
            return None;
        }
        let ip = |at| Some(Ip::v4(u32::from_be_bytes(*chunk(header, at)?)));
        (ip(12)?, ip(16)?, header[9], l3 + header_len)
    };
    let (sport, dport) = match proto {
        proto::TCP | proto::UDP | proto::SCTP => (u16_at(bytes, l4)?, u16_at(bytes, l4 + 2)?),
        proto::ICMP | proto::ICMPV6 if (proto == proto::ICMPV6) == headers.is_v6() && is_echo(proto, *bytes.get(l4)?) => {
            let id = u16_at(bytes, l4 + icmp::IDENTIFIER)?;
            (id, id)
        }
        _ => (0, 0),
    };
    Some(Quote { tuple: Tuple { src, dst, sport, dport, proto }, l3, l4 })
}

const fn is_echo(number: u8, kind: u8) -> bool {
    match number {
        proto::ICMP => matches!(kind, icmp::ECHO_REQUEST | icmp::ECHO_REPLY),
        _ => matches!(kind, icmpv6::ECHO_REQUEST | icmpv6::ECHO_REPLY),
    }
}

/// Translates an ICMP error that travels along with the packets of `from`, which become packets of `to`.
///
/// The quote is a packet of the other direction and becomes one of the inverse of `to`. The outer destination follows; the outer
/// source does where the flow's own end reports, and stays where a router on the way does (RFC 5508 §4.2).
///
/// # Errors
/// `InvalidPacket` where the quote is not of this flow. Nothing may be sent after an error.
pub fn translate_error(bytes: &mut [u8], headers: &Headers, from: &Tuple, to: &Tuple) -> Result<(), DropReason> {
    let quote = read_quote(bytes, headers).filter(|quote| quote.tuple.inverse() == *from).ok_or(DropReason::InvalidPacket)?;
    translate(bytes, headers, &quote, from, to).ok_or(DropReason::InvalidPacket)
}

fn translate(bytes: &mut [u8], headers: &Headers, quote: &Quote, from: &Tuple, to: &Tuple) -> Option<()> {
    let is_v6 = headers.is_v6();
    let (old_src, old_dst) = (headers.tuple.src, headers.tuple.dst);
    let src = if old_src == from.src { to.src } else { old_src };
    let dst = if old_dst == from.dst { to.dst } else { old_dst };

    let mut delta = translate_quote(bytes.get_mut(..headers.frame_len())?, quote, is_v6, &from.inverse(), &to.inverse())?;
    let addresses = Delta::NONE.ip(old_src, src).ip(old_dst, dst);
    set_addresses(bytes, usize::from(headers.l3), is_v6, src, dst)?;
    if is_v6 {
        delta = delta.and(addresses); // RFC 4443 §2.3: the pseudo header counts
    } else {
        update(bytes, usize::from(headers.l3) + ipv4::CHECKSUM, addresses)?;
    }
    update(bytes, usize::from(headers.l4) + icmp::CHECKSUM, delta)?;
    Some(())
}

/// Turns the quoted packet of `old` into one of `new`; gives what that adds to the sum of the ICMP message.
fn translate_quote(bytes: &mut [u8], quote: &Quote, is_v6: bool, old: &Tuple, new: &Tuple) -> Option<Delta> {
    let addresses = Delta::NONE.ip(old.src, new.src).ip(old.dst, new.dst);
    let ports = Delta::NONE.word(old.sport, new.sport).word(old.dport, new.dport);
    let identifier = Delta::NONE.word(old.sport, new.sport);
    let mut total = addresses;
    set_addresses(bytes, quote.l3, is_v6, new.src, new.dst)?;
    if !is_v6 {
        total = total.and(update(bytes, quote.l3 + ipv4::CHECKSUM, addresses)?);
    }
    let (sport, dport) = (new.sport.to_be_bytes(), new.dport.to_be_bytes());
    match old.proto {
        proto::TCP | proto::UDP => {
            *chunk_mut(bytes, quote.l4)? = sport;
            *chunk_mut(bytes, quote.l4 + 2)? = dport;
            total = total.and(ports);
            let is_udp = old.proto == proto::UDP;
            let field = quote.l4 + if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM };
            match u16_at(bytes, field) {
                None => {}              // cut off before
                Some(0) if is_udp => {} // RFC 768: there is none
                Some(_) => {
                    total = total.and(update(bytes, field, addresses.and(ports))?);
                    if is_udp && u16_at(bytes, field) == Some(0) {
                        *chunk_mut(bytes, field)? = [0xff; 2]; // the same to a sum
                    }
                }
            }
        }
        // The CRC in the quote covers bytes that are not quoted; receivers look up ports and verification tag (RFC 9260 §10).
        proto::SCTP => {
            *chunk_mut(bytes, quote.l4)? = sport;
            *chunk_mut(bytes, quote.l4 + 2)? = dport;
            total = total.and(ports);
        }
        proto::ICMP | proto::ICMPV6 if old.sport != new.sport => {
            *chunk_mut(bytes, quote.l4 + icmp::IDENTIFIER)? = sport;
            let inner = if is_v6 { addresses.and(identifier) } else { identifier };
            total = total.and(identifier).and(update(bytes, quote.l4 + icmp::CHECKSUM, inner)?);
        }
        proto::ICMPV6 => {
            if let Some(inner) = update(bytes, quote.l4 + icmp::CHECKSUM, addresses) {
                total = total.and(inner);
            }
        }
        _ => {}
    }
    Some(total)
}

fn set_addresses(bytes: &mut [u8], l3: usize, is_v6: bool, src: Ip, dst: Ip) -> Option<()> {
    if is_v6 {
        *chunk_mut(bytes, l3 + 8)? = src.0.to_be_bytes();
        *chunk_mut(bytes, l3 + 24)? = dst.0.to_be_bytes();
    } else {
        *chunk_mut(bytes, l3 + 12)? = src.low32().to_be_bytes();
        *chunk_mut(bytes, l3 + 16)? = dst.low32().to_be_bytes();
    }
    Some(())
}

/// Updates the checksum at `at` for an edit of what it covers; gives what this adds to a sum that covers the field itself.
fn update(bytes: &mut [u8], at: usize, edit: Delta) -> Option<Delta> {
    let field: &mut [u8; 2] = chunk_mut(bytes, at)?;
    let old = u16::from_be_bytes(*field);
    let new = checksum::update(old, edit.folded());
    *field = new.to_be_bytes();
    Some(Delta::NONE.word(old, new))
}

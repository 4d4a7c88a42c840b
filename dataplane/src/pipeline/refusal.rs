//! How a packet that goes nowhere ends: in silence, or with an answer to its sender.

use super::{Cx, Inbound, Sender};
use crate::answer::{self, IcmpError};
use crate::conntrack::Tuple;
use crate::io::Packet;
use crate::model::{GATEWAY_V6, Ip, proto};
use crate::overlay::vxlan;
use crate::parse::{HeaderFlags, Headers};
use crate::route::Exit;
use crate::tables::Tables;
use crate::verdict::{DropReason, Verdict};

/// Why a packet goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Discarded.
    Silent(DropReason),
    /// Its sender is told: TCP by a reset where `reset`, all else by an ICMP error from this address.
    Answered { reason: DropReason, error: IcmpError, from: Ip, reset: bool },
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self::Silent(reason)
    }
}

impl Refusal {
    /// Nobody is there: RST or port unreachable, in the name of the address that was asked for (E2.13).
    pub(super) fn unreachable(reason: DropReason, tuple: &Tuple) -> Self {
        Self::Answered { reason, error: IcmpError::PortUnreachable, from: tuple.dst, reset: tuple.proto == proto::TCP }
    }
    /// A policy forbids it: RST or administratively prohibited (E1.41).
    pub(super) fn prohibited(reason: DropReason, tuple: &Tuple) -> Self {
        Self::Answered { reason, error: IcmpError::Prohibited, from: tuple.dst, reset: tuple.proto == proto::TCP }
    }
    /// The node's own word: time to live used up (RFC 1812 §5.3.1).
    pub(super) fn ttl_exceeded(tables: &Tables, headers: &Headers) -> Self {
        Self::by_node(tables, headers, DropReason::TtlExceeded, IcmpError::TimeExceeded)
    }
    /// The node's own word: longer than what the way out takes (RFC 1191 §4, RFC 8201 §4).
    pub(super) fn too_big(tables: &Tables, headers: &Headers, mtu: u16) -> Self {
        let may_be_fragmented = !headers.has(HeaderFlags::DF);
        let reason = if may_be_fragmented { DropReason::FragmentationNotSupported } else { DropReason::FragmentationNeeded };
        Self::by_node(tables, headers, reason, IcmpError::TooBig { mtu })
    }
    fn by_node(tables: &Tables, headers: &Headers, reason: DropReason, error: IcmpError) -> Self {
        let own = tables.own_address(!headers.is_v6());
        match own.or_else(|| headers.is_v6().then_some(GATEWAY_V6.into())) {
            Some(from) => Self::Answered { reason, error, from, reset: false },
            None => Self::Silent(reason),
        }
    }
}

/// Ends a packet: makes the frame its own answer where there is to be one.
#[cold]
pub(super) fn answer(cx: &mut Cx<'_>, packet: &mut Packet, inbound: &Inbound, refusal: Refusal) -> Verdict {
    let (reason, error, from, reset) = match refusal {
        Refusal::Silent(reason) => return Verdict::Drop(reason),
        Refusal::Answered { reason, error, from, reset } => (reason, error, from, reset),
    };
    let headers = &inbound.headers;
    let answered = if reset {
        answer::tcp_reset(cx.arena, &mut packet.frame, headers)
    } else if cx.local.limiters.get_mut(usize::from(packet.in_port.0)).is_some_and(|limiter| limiter.take(cx.now)) {
        answer::icmp_error(cx.arena, &mut packet.frame, headers, error, from)
    } else {
        return Verdict::Drop(DropReason::RateLimited);
    };
    if !answered {
        return Verdict::Drop(reason);
    }
    return_to_sender(cx, packet, inbound, Some(reason)).unwrap_or(Verdict::Drop(reason))
}

/// Sends an answer back by the port where the packet came in, through the overlay if it came that way.
pub(super) fn return_to_sender(
    cx: &Cx<'_>,
    packet: &mut Packet,
    inbound: &Inbound,
    reason: Option<DropReason>,
) -> Result<Verdict, Refusal> {
    let Sender::Tunnel(node) = inbound.sender else { return Ok(Verdict::Reply(reason)) };
    let exit = cx.tables.routes.to_node(node)?;
    let Exit::Vxlan { tunnel, .. } = cx.tables.routes.exit(exit) else {
        return Err(Refusal::Silent(DropReason::NoTunnelEndpoint));
    };
    let template = &cx.tables.routes.tunnel(tunnel).template;
    match vxlan::encap(cx.arena, &mut packet.frame, template, inbound.headers.tos, inbound.hashed.hash) {
        true => Ok(Verdict::Reply(reason)),
        false => Err(Refusal::Silent(DropReason::InvalidPacket)),
    }
}

/// ICMP errors per second, worker and port, at the rate of Linux (`net.ipv4.icmp_msgs_per_sec`); RFC 1812 §4.3.2.8, RFC 4443
/// §2.4(f). A limit for all ports would let one pod take from the others what tells them the MTU of their paths.
const ERRORS_PER_SEC: u64 = 1000;
/// ICMP errors at once after a pause.
const ERRORS_BURST: u64 = 200;
const NANOS_PER_ERROR: u64 = 1_000_000_000 / ERRORS_PER_SEC;

/// A token bucket, kept as the time until which its tokens are spent; that may be as far ahead as a burst takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limiter {
    spent_until: u64,
}

impl Limiter {
    fn take(&mut self, now: u64) -> bool {
        let from = self.spent_until.max(now);
        let granted = from + NANOS_PER_ERROR <= now + ERRORS_BURST * NANOS_PER_ERROR;
        if granted {
            self.spent_until = from + NANOS_PER_ERROR;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_in_a_burst_and_then_at_the_rate() {
        let mut limiter = Limiter::default();
        let start = 10_000_000_000;
        let burst = (0..2 * ERRORS_BURST).filter(|_| limiter.take(start)).count();
        assert_eq!(burst as u64, ERRORS_BURST);
        let second = (0..10_000u64).filter(|n| limiter.take(start + n * 100_000)).count();
        assert!((990..=1000).contains(&second), "{second} in a second");
    }
}

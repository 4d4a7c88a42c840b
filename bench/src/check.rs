//! Are the packets that leave those that should? Every byte of a round, against packets made from scratch.

use weir_dataplane::conntrack::Tuple;
use weir_dataplane::craft::Craft;
use weir_dataplane::model::{Ip, MacAddr, proto};
use weir_dataplane::verdict::Verdict;
use weir_dataplane::wire::tcp;

use crate::plan::{Plan, Way};
use crate::traffic::{Traffic, craft};
use crate::world;

impl Traffic {
    /// Sends a round each way and compares it.
    ///
    /// # Panics
    /// At the first difference.
    pub fn check(&mut self) {
        self.fill_requests();
        self.run();
        self.check_requests();
        self.fill_replies();
        self.run();
        self.check_replies();
    }

    /// Compares every byte of every request, as it leaves, with one made from scratch.
    ///
    /// # Panics
    /// At the first difference, and at any other verdict than that it leaves for its backend.
    pub fn check_requests(&self) {
        for (packet, index) in self.packets.iter().zip(&self.sent) {
            let backend = self.backend(*index);
            let sent = Craft { ttl: 63, ..craft(self.translated(*index), tcp::ACK) };
            let bytes = self.arena.bytes(&packet.frame);
            if self.plan.way == Way::Overlay {
                assert_eq!(packet.verdict, Verdict::Encap(world::UPLINK));
                assert_eq!(bytes, wrapped(sent, world::node_of(backend), bytes), "flow {index}");
            } else {
                assert_eq!(packet.verdict, Verdict::Forward(world::pod_port(backend)));
                let expected = Craft { src_mac: MacAddr::GATEWAY, dst_mac: world::pod_mac(backend), ..sent };
                assert_eq!(bytes, expected.frame(), "flow {index}");
            }
        }
    }

    /// Likewise for answers: they must arrive at their pod from whom it asked.
    ///
    /// # Panics
    /// As [`check_requests`](Self::check_requests).
    pub fn check_replies(&self) {
        for (packet, index) in self.packets.iter().zip(&self.sent) {
            let client = Plan::client(*index);
            assert_eq!(packet.verdict, Verdict::Forward(world::pod_port(client)));
            let sent = craft(self.plan.tuple(*index).inverse(), tcp::ACK);
            let expected = Craft { ttl: 63, src_mac: MacAddr::GATEWAY, dst_mac: world::pod_mac(client), ..sent };
            assert_eq!(self.arena.bytes(&packet.frame), expected.frame(), "flow {index}");
        }
    }
}

/// The packet inside VXLAN towards a remote node. The outer source port is free within its range, so it is taken from `got`.
fn wrapped(inner: Craft, node: u32, got: &[u8]) -> Vec<u8> {
    let mac = |node| MacAddr::from_ip(world::node(node).into());
    let inner = Craft { src_mac: mac(0), dst_mac: mac(node), ..inner };
    let sport = u16::from_be_bytes([got[34], got[35]]);
    assert!(sport >= 0xc000, "RFC 7348 §5");
    let outer = Tuple { src: Ip::v4(world::node(0).into()), dst: Ip::v4(world::node(node).into()), sport, dport: 8472, proto: proto::UDP };
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &inner.frame()].concat();
    let mut expected = Craft { src_mac: world::uplink_mac(), dst_mac: mac(node), payload, ..Craft::new(outer) }.frame();
    expected[40..42].fill(0);
    expected
}

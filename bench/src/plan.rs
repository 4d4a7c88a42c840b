//! Which flows there are: their tuples before and after translation, by number. No memory, no packets.

use std::net::Ipv4Addr;

use weir_dataplane::conntrack::Tuple;
use weir_dataplane::model::{Family, proto};

use crate::world::{self, BACKEND_PORT, PODS, SERVERS, SERVICE_PORT, SERVICES};

/// Where the flows of a run go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From pod to pod on this node, by its address: nothing is translated.
    Pod,
    /// To a service whose backends are on this node.
    Service,
    /// To a service whose backends are on other nodes, inside VXLAN.
    Overlay,
}

/// The flows of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where they go.
    pub way: Way,
    /// The family of their addresses.
    pub family: Family,
}

impl Plan {
    /// What the main rows measure: services behind VXLAN, IPv4.
    pub const MAIN: Self = Self { way: Way::Overlay, family: Family::V4 };
}

/// Source ports that each pod uses for a group of services.
const SPORTS: u32 = 60_000;
const SERVICES_PER_GROUP: u32 = 32;
/// The last group of services is asked by new connections only.
const GROUP_OF_NEW: u32 = SERVICES / SERVICES_PER_GROUP - 1;
/// Most flows at a time; numbers from here on are of new connections.
pub const FLOWS_MAX: u32 = PODS * SPORTS * GROUP_OF_NEW;
/// New connections before their tuples are used again.
pub const FRESH_MAX: u32 = PODS * SPORTS;

/// A fixed scramble, so that service and protocol of neighbouring flows have nothing to do with each other.
pub const fn mix(index: u32) -> u64 {
    let x = (index as u64 ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

/// The place of a flow's service among those of its kind.
fn service_of(index: u32) -> u32 {
    index / PODS / SPORTS * SERVICES_PER_GROUP + mix(index) as u32 % SERVICES_PER_GROUP
}

impl Plan {
    /// The pod that asks.
    pub fn client(index: u32) -> Ipv4Addr {
        world::pod(index % PODS)
    }
    /// The tuple with which the client of a flow sends.
    pub fn tuple(self, index: u32) -> Tuple {
        let service = service_of(index);
        let (dst, dport) = match self.way {
            Way::Pod => (world::server(service % SERVERS), BACKEND_PORT),
            Way::Service => (world::service(SERVICES + service), SERVICE_PORT),
            Way::Overlay => (world::service(service), SERVICE_PORT),
        };
        Tuple {
            src: world::in_family(self.family, Self::client(index)).into(),
            dst: world::in_family(self.family, dst).into(),
            sport: 1024 + (index / PODS % SPORTS) as u16,
            dport,
            proto: if mix(index) >> 16 & 1 == 0 { proto::TCP } else { proto::UDP },
        }
    }
    /// Where backend number `choice` of the flow's service is: address and port.
    pub fn backend(self, index: u32, choice: u32) -> (Ipv4Addr, u16) {
        let service = service_of(index);
        match self.way {
            Way::Pod => (world::server(service % SERVERS), BACKEND_PORT),
            Way::Service => world::backend_of(SERVICES + service, choice),
            Way::Overlay => world::backend_of(service, choice),
        }
    }
    /// The tuple with which a request of the flow reaches that backend.
    pub fn translated(self, index: u32, choice: u32) -> Tuple {
        let (address, dport) = self.backend(index, choice);
        Tuple { dst: world::in_family(self.family, address).into(), dport, ..self.tuple(index) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_flows_share_a_tuple_in_either_direction() {
        for way in [Way::Pod, Way::Service, Way::Overlay] {
            let plan = Plan { way, family: Family::V6 };
            let spread = (0..400).flat_map(|n| [n, n + PODS * SPORTS - 200, n + 2 * PODS * SPORTS, FLOWS_MAX + n]);
            let indices: HashSet<u32> = spread.collect();
            let tuples: HashSet<Tuple> = indices.iter().map(|index| plan.tuple(*index)).collect();
            let replies: HashSet<Tuple> = indices.iter().map(|index| plan.translated(*index, mix(*index) as u32 % 10)).collect();
            assert_eq!((tuples.len(), replies.len()), (indices.len(), indices.len()), "{way:?}");
        }
    }
}

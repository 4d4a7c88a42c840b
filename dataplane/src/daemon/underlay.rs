//! From what the kernel says of its network to what the pipeline needs of it.

use std::collections::HashSet;
use std::net::IpAddr;

use weir_host::{Neighbour, Net, Picture, Reach};

use crate::model::MacAddr;
use crate::runtime::{Route, Underlay};

/// Reads the underlay behind the interface `uplink` out of a picture; everything empty where there is no such interface.
///
/// Of several routes to one prefix the one with the lowest metric counts, of several ways the first that is alive. Routes by
/// other interfaces are left out: what they would carry cannot leave by a port of ours.
pub(super) fn read(picture: &Picture, uplink: Option<&str>) -> Underlay {
    let mut underlay = Underlay { addresses: picture.addresses.iter().map(|a| a.net.addr()).collect(), ..Underlay::default() };
    underlay.addresses.sort_unstable();
    underlay.addresses.dedup();
    let Some(link) = uplink.and_then(|name| picture.links.iter().find(|link| link.name == name)) else { return underlay };
    underlay.mac = link.mac.map(MacAddr).unwrap_or_default();
    underlay.mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);

    let mut routes: Vec<_> = picture.routes.iter().filter(|route| !route.refuses).collect();
    routes.sort_by_key(|route| (route.destination, route.metric));
    let mut seen = HashSet::new();
    for route in routes {
        let Some(hop) = route.hops.iter().find(|hop| !hop.dead) else { continue };
        if seen.insert(route.destination) && hop.index == link.index {
            underlay.routes.push(Route { prefix: route.destination, via: hop.via });
        }
    }
    let usable = |n: &&Neighbour| n.index == link.index && n.state != Reach::Failed;
    underlay.neighbours = picture.neighbours.iter().filter(usable).filter_map(|n| Some((n.ip, MacAddr(n.mac?)))).collect();
    underlay.neighbours.sort_unstable();
    underlay
}

/// Asks the kernel to resolve, or to confirm, the next hops towards `targets` that it is not sure of. The kernel itself sends
/// nothing to them, so nobody else would.
pub(super) fn probe(net: &Net, picture: &Picture, underlay: &Underlay, uplink: &str, targets: impl Iterator<Item = IpAddr>) {
    let Some(link) = picture.links.iter().find(|link| link.name == uplink) else { return };
    let gateways = underlay.routes.iter().filter_map(|route| route.via);
    let hops: HashSet<IpAddr> = targets.filter_map(|target| next_hop(underlay, target)).chain(gateways).collect();
    for hop in hops {
        let known = picture.neighbours.iter().find(|n| n.index == link.index && n.ip == hop);
        if known.is_some_and(|n| matches!(n.state, Reach::Good | Reach::Incomplete)) {
            continue;
        }
        if let Err(error) = net.probe_neighbour(link.index, hop) {
            tracing::debug!(%hop, %error, "cannot ask for a neighbour");
        }
    }
}

fn next_hop(underlay: &Underlay, target: IpAddr) -> Option<IpAddr> {
    let matching = underlay.routes.iter().filter(|route| route.prefix.contains(&target));
    matching.max_by_key(|route| route.prefix.prefix_len()).map(|route| route.via.unwrap_or(target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_host::{Address, Hop, Link};

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            carrier: true,
            loopback: false,
            kind: None,
            rx_queues: 1,
            tx_queues: 1,
            master: None,
            xdp_program: None,
        }
    }

    fn route(to: &str, index: u32, via: Option<&str>, metric: u32) -> weir_host::Route {
        let hop = Hop { index, via: via.map(|v| v.parse().unwrap()), dead: false };
        weir_host::Route { destination: to.parse().unwrap(), hops: vec![hop], source: None, mtu: None, metric, protocol: 4, refuses: false }
    }

    #[test]
    fn the_best_route_by_the_uplink_counts_and_others_do_not() {
        let mut dead = route("10.9.0.0/16", 2, Some("10.0.0.9"), 0);
        dead.hops[0].dead = true;
        let picture = Picture {
            links: vec![link(2, "eth1"), link(3, "eth2")],
            addresses: vec![Address { index: 2, net: "10.0.0.10/24".parse().unwrap(), narrow: false }],
            routes: vec![
                route("0.0.0.0/0", 2, Some("10.0.0.1"), 100),
                route("0.0.0.0/0", 3, Some("10.1.0.1"), 50),
                route("10.0.0.0/24", 2, None, 0),
                dead,
            ],
            neighbours: vec![Neighbour { index: 2, ip: "10.0.0.1".parse().unwrap(), mac: Some([1; 6]), state: Reach::Stale }],
        };
        let underlay = read(&picture, Some("eth1"));
        // The default route leads elsewhere (metric 50 wins): nothing of it leaves by the uplink.
        assert_eq!(underlay.routes, [Route { prefix: "10.0.0.0/24".parse().unwrap(), via: None }]);
        assert_eq!(underlay.neighbours, [("10.0.0.1".parse().unwrap(), MacAddr([1; 6]))]);
        assert_eq!(next_hop(&underlay, "10.0.0.77".parse().unwrap()), Some("10.0.0.77".parse().unwrap()));
        assert_eq!(next_hop(&underlay, "10.1.0.77".parse().unwrap()), None);
        assert_eq!(read(&picture, Some("eth9")).mtu, 0);
    }
}

//! Longest prefix match: which set of nested prefixes covers an address.
//!
//! Nested prefixes are flattened at compile time into disjoint ranges, each with the value of everything that covers it, so
//! a lookup is one binary search whatever the nesting. 5 bytes (IPv4) or 17 (IPv6) and one value per range, at most two ranges per
//! prefix and one.

use ipnet::IpNet;

use crate::model::Ip;

/// Disjoint ranges over both families.
#[derive(Clone, Debug)]
pub struct Ranges<V> {
    v4: Family<u32, V>,
    v6: Family<u128, V>,
}

#[derive(Clone, Debug)]
struct Family<A, V> {
    /// First address of each range; the first one is 0, each range ends before the next.
    starts: Vec<A>,
    values: Vec<V>,
}

impl<V: Clone + PartialEq> Ranges<V> {
    /// Flattens `prefixes`. The value of a range is `outside` changed by every prefix that covers it, shortest first, those
    /// of equal length in the order given.
    pub fn build<E>(prefixes: &[(IpNet, E)], outside: &V, change: impl Fn(&mut V, &E)) -> Self {
        let mut v4: Vec<(u128, u8, u128, &E)> = Vec::new();
        let mut v6 = Vec::new();
        for (net, effect) in prefixes {
            match net.trunc() {
                IpNet::V4(n) => v4.push((u32::from(n.network()).into(), n.prefix_len(), u32::from(n.broadcast()).into(), effect)),
                IpNet::V6(n) => v6.push((n.network().into(), n.prefix_len(), n.broadcast().into(), effect)),
            }
        }
        let v4 = flatten(v4, u128::from(u32::MAX), outside, &change);
        let v6 = flatten(v6, u128::MAX, outside, &change);
        let (starts, values) = v4.into_iter().map(|(start, value)| (start as u32, value)).unzip();
        let v4 = Family { starts, values };
        let (starts, values) = v6.into_iter().unzip();
        Self { v4, v6: Family { starts, values } }
    }
}

impl<V> Ranges<V> {
    /// The value at an address.
    pub fn find(&self, ip: Ip) -> &V {
        if ip.is_v4() { self.v4.find(ip.low32()) } else { self.v6.find(ip.0) }
    }

    /// The same ranges with other values.
    pub fn map<W>(self, mut translate: impl FnMut(V) -> W) -> Ranges<W> {
        let v4 = Family { starts: self.v4.starts, values: self.v4.values.into_iter().map(&mut translate).collect() };
        let v6 = Family { starts: self.v6.starts, values: self.v6.values.into_iter().map(&mut translate).collect() };
        Ranges { v4, v6 }
    }
}

impl<A: Ord, V> Family<A, V> {
    fn find(&self, address: A) -> &V {
        // The first start is 0, so there is always a range at or before the address.
        &self.values[self.starts.partition_point(|start| *start <= address) - 1]
    }
}

/// Walks the prefixes as a tree, parents first, and notes where the value changes.
fn flatten<V: Clone + PartialEq, E>(
    mut prefixes: Vec<(u128, u8, u128, &E)>,
    last: u128,
    outside: &V,
    change: &impl Fn(&mut V, &E),
) -> Vec<(u128, V)> {
    prefixes.sort_by_key(|(first, len, _, _)| (*first, *len));
    let mut ranges = vec![(0, outside.clone())];
    let mut open: Vec<(u128, V)> = Vec::new();
    let mut note = |at: u128, value: V| {
        if ranges.last().is_some_and(|(start, _)| *start == at) {
            ranges.pop();
        }
        if ranges.last().is_none_or(|(_, before)| *before != value) {
            ranges.push((at, value));
        }
    };
    let close = |open: &mut Vec<(u128, V)>, before: Option<u128>, note: &mut dyn FnMut(u128, V)| {
        while let Some((end, _)) = open.last()
            && before.is_none_or(|first| *end < first)
        {
            let end = *end;
            open.pop();
            if end < last {
                note(end + 1, open.last().map_or_else(|| outside.clone(), |(_, value)| value.clone()));
            }
        }
    };
    for (first, _, end, effect) in prefixes {
        close(&mut open, Some(first), &mut note);
        let mut value = open.last().map_or_else(|| outside.clone(), |(_, value)| value.clone());
        change(&mut value, effect);
        note(first, value.clone());
        open.push((end, value));
    }
    close(&mut open, None, &mut note);
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_inherits_from_those_around_it() {
        let nets = [("10.0.0.0/8", 1), ("10.1.0.0/16", 2), ("10.1.255.255/32", 4), ("0.0.0.0/0", 8), ("::/0", 16)];
        let nets: Vec<(IpNet, u32)> = nets.iter().map(|(n, v)| (n.parse().unwrap(), *v)).collect();
        let ranges = Ranges::build(&nets, &0, |v, e| *v += e);
        let at = |ip: &str| *ranges.find(ip.parse::<std::net::IpAddr>().unwrap().into());
        assert_eq!(at("9.255.255.255"), 8);
        assert_eq!(at("10.0.0.0"), 9);
        assert_eq!(at("10.1.255.254"), 11);
        assert_eq!(at("10.1.255.255"), 15);
        assert_eq!(at("10.2.0.0"), 9);
        assert_eq!(at("255.255.255.255"), 8);
        assert_eq!(at("::ffff:1:0:0"), 16);
    }

    proptest! {
        #[test]
        fn flattened_ranges_equal_a_scan_of_all_prefixes(
            nets in prop::collection::vec((0u32..64, 24u8..=32), 0..20),
            probes in prop::collection::vec(0u32..300, 50),
        ) {
            let nets: Vec<(IpNet, u64)> = nets.iter().enumerate()
                .map(|(n, (addr, len))| (IpNet::new(std::net::Ipv4Addr::from(addr * 4).into(), *len).unwrap(), 1 << n))
                .collect();
            let ranges = Ranges::build(&nets, &0, |v, e| *v |= e);
            for probe in probes {
                let addr = std::net::IpAddr::from(std::net::Ipv4Addr::from(probe));
                let expected = nets.iter().filter(|(net, _)| net.contains(&addr)).fold(0, |all, (_, bit)| all | bit);
                prop_assert_eq!(*ranges.find(addr.into()), expected);
            }
        }
    }
}

//! Known flows on every way, in both families, in two orders.
//!
//! Answers: what do translation, the overlay and 128-bit addresses cost, and what does it give back that real traffic prefers few
//! flows? Axes: way (pod to pod here; service with a backend here; service behind VXLAN; answers out of VXLAN), family,
//! uniform or Zipf order, live flows. `vxlan_out_ipv4_uniform` and `vxlan_in_ipv4_uniform` are the main rows of `known` and not
//! measured twice. Frames have 60 bytes in IPv4 and 74 in IPv6.

use criterion::{BenchmarkId, Criterion};
use weir_bench::plan::{Plan, Way};
use weir_bench::traffic::{Order, Traffic};
use weir_dataplane::model::Family;

use crate::rig::{World, group, measured, row};

type Fill = fn(&mut Traffic);
const REQUESTS: Fill = Traffic::fill_requests;
const REPLIES: Fill = Traffic::fill_replies;

/// The main rows' flows first: they are open already.
const WAYS: [(Way, &[(&str, Fill)]); 3] = [
    (Way::Overlay, &[("vxlan_out", REQUESTS), ("vxlan_in", REPLIES)]),
    (Way::Service, &[("service", REQUESTS)]),
    (Way::Pod, &[("pod_to_pod", REQUESTS)]),
];

pub(crate) fn rows(criterion: &mut Criterion, world: &mut World, flows: u32) {
    let mut rows = group(criterion, "ways", 1);
    for (family, family_name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        for (way, fills) in WAYS {
            let plan = Plan { way, family };
            for (fill_name, fill) in fills {
                for (order, order_name) in [(Order::Uniform, "uniform"), (Order::Zipf, "zipf")] {
                    if (plan, order) == (Plan::MAIN, Order::Uniform) {
                        continue;
                    }
                    let id = BenchmarkId::new(format!("{fill_name}_{family_name}_{order_name}"), flows);
                    row(
                        &mut rows,
                        id,
                        || {
                            let traffic = world.of(plan, flows);
                            traffic.order = order;
                            traffic
                        },
                        |traffic| {
                            fill(traffic);
                            measured(traffic, 0)
                        },
                    );
                }
            }
        }
    }
    rows.finish();
}

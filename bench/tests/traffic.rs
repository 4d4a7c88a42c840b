//! The packets of the benches are what they are taken for, and the packet loop allocates nothing.

use std::sync::Arc;

use weir_bench::allocations::Counting;
use weir_bench::hostile::Fragments;
use weir_bench::map_path::{Entry, MapPath};
use weir_bench::maps::{Dash, Hashbrown, Papaya};
use weir_bench::plan::{Plan, Way};
use weir_bench::traffic::{KEY, Order, SLOTS, Traffic};
use weir_bench::world;
use weir_dataplane::model::Family;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn neither_known_nor_new_flows_allocate() {
    let mut traffic = Traffic::new(1_000);
    for fill in [Traffic::fill_requests, Traffic::fill_replies, Traffic::fill_first_packets] {
        fill(&mut traffic);
        let before = Counting::count();
        traffic.run();
        assert_eq!(Counting::count(), before);
    }
}

#[test]
fn packets_leave_every_way_byte_for_byte_as_made_from_scratch() {
    let tables = Arc::new(world::tables(100));
    for way in [Way::Pod, Way::Service, Way::Overlay] {
        for family in [Family::V4, Family::V6] {
            let mut traffic = Traffic::with(Plan { way, family }, 5_000, tables.clone(), KEY);
            traffic.check();
            traffic.order = Order::Zipf;
            traffic.check();
        }
    }
}

#[test]
fn the_same_way_on_a_hash_map_gives_the_same_bytes() {
    let mut traffic = Traffic::new(1_000);
    MapPath::<Hashbrown<Entry>>::checked(&mut traffic);
    MapPath::<Papaya<Entry>>::checked(&mut traffic);
    MapPath::<Dash<Entry>>::checked(&mut traffic);
}

#[test]
fn an_attack_ends_where_it_should() {
    let mut traffic = Traffic::new(1_000);
    let mut drops_of = |fill: &dyn Fn(&mut Traffic)| {
        let before = traffic.local.counters.drop;
        fill(&mut traffic);
        traffic.run();
        traffic.local.counters.drop - before
    };
    assert_eq!(drops_of(&Traffic::fill_malformed), u64::from(SLOTS));
    assert_eq!(drops_of(&|traffic| traffic.fill_fragments(Fragments::First)), 0);
    // Also right after first fragments, which must not be theirs.
    assert_eq!(drops_of(&|traffic| traffic.fill_fragments(Fragments::Later)), u64::from(SLOTS));
    let colliding = traffic.colliding(KEY);
    let (bits, one) = (|index: &u32| hash_of(&traffic, *index) >> 57, colliding[0]);
    assert!(colliding.len() == SLOTS as usize && colliding.iter().all(|index| bits(index) == bits(&one)));
}

fn hash_of(traffic: &Traffic, index: u32) -> u64 {
    traffic.conns.hash(&traffic.plan.tuple(index))
}

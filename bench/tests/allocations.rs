//! The packet loop allocates nothing.

use weir_bench::allocations::Counting;
use weir_bench::traffic::Traffic;

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
fn requests_and_answers_leave_byte_for_byte_as_made_from_scratch() {
    let mut traffic = Traffic::new(5_000);
    traffic.fill_requests();
    traffic.run();
    traffic.check_requests();
    traffic.fill_replies();
    traffic.run();
    traffic.check_replies();
}

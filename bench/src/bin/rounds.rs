//! Runs one row of the pipeline bench a few times: for callgrind and perf, and for a quick look.
//!
//! `rounds [ROW [FLOWS [ROUNDS]]]`, row = `established_dnat_vxlan`, `established_decap`, `new_connection` or `hashbrown`. Prints the
//! best and the median round in ns per packet. Under `valgrind --tool=callgrind --toggle-collect='*Traffic*::run*'` only the
//! pipeline is counted, first packets and answers of the flows included: subtract a run of no rounds.

use std::time::Duration;

use weir_bench::map_path::MapPath;
use weir_bench::traffic::{SLOTS, Traffic};

fn main() {
    let mut args = std::env::args().skip(1);
    let row = args.next().unwrap_or_else(|| "established_dnat_vxlan".into());
    let mut number = |default: u32| args.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (flows, rounds) = (number(1000), number(200));
    let mut traffic = Traffic::new(flows);
    let mut map = (row == "hashbrown").then(|| MapPath::new(&traffic));
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| match (row.as_str(), &mut map) {
            ("hashbrown", Some(map)) => {
                traffic.fill_requests();
                map.run(&mut traffic)
            }
            ("established_decap", _) => {
                traffic.fill_replies();
                traffic.run()
            }
            ("new_connection", _) => {
                traffic.fill_first_packets();
                let took = traffic.run();
                traffic.forget_first_packets();
                took
            }
            _ => {
                traffic.fill_requests();
                traffic.run()
            }
        })
        .collect();
    times.sort_unstable();
    if let (Some(best), Some(median)) = (times.first(), times.get(times.len() / 2)) {
        let nanos = |time: &Duration| time.as_nanos() as f64 / f64::from(SLOTS);
        println!("{row} {flows}: best {:.1}, median {:.1} ns a packet", nanos(best), nanos(median));
    }
}

//! The table against a plain map, alone and under threads. `WEIR_LONG=1` runs a hundred times as many operations.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::tcp::{Fit, Numbers};
use super::*;
use crate::model::{Ip, proto};

fn table(max: u32, workers: u32) -> ConnTable {
    ConnTable::new(&TableConfig { max, key: 0x1234_5678_9abc_def0, workers, owners: 8, share: max }).unwrap()
}

/// A flow of either family, translated or not, told by a number.
fn flow(n: u32) -> (Tuple, Tuple) {
    let (client, service, backend) = if n.is_multiple_of(3) {
        (Ip(0xfd00 << 112 | u128::from(n)), Ip(0xfd01 << 112 | 7), Ip(0xfd02 << 112 | u128::from(n % 50)))
    } else {
        (Ip::v4(0x0af4_0000 + n), Ip::v4(0x0a60_0001), Ip::v4(0x0af4_0100 + n % 50))
    };
    let protocol = if n.is_multiple_of(2) { proto::TCP } else { proto::UDP };
    let original = Tuple { src: client, dst: service, sport: n as u16, dport: 80, proto: protocol };
    let to = if n.is_multiple_of(5) { original } else { Tuple { dst: backend, dport: 8080, ..original } };
    (original, to.inverse())
}

fn init(n: u32) -> FlowInit {
    FlowInit {
        original: Leg { exit: n, l3_delta: n as u16, l4_delta: !n as u16 },
        reply: Leg { exit: !n, l3_delta: 1, l4_delta: 2 },
        first: FirstPacket::NONE,
        generation: 7,
        owner: n % 8,
        counter: n ^ 0x5555,
        state: if n.is_multiple_of(2) { FlowState::SynSent } else { FlowState::Unreplied },
    }
}

fn find(table: &ConnTable, tuple: &Tuple) -> Option<Hit> {
    table.lookup(table.hash(tuple), tuple)
}

/// Asserts that what the table says of flow `n` is what was put in.
fn check(table: &ConnTable, hit: Hit, n: u32) {
    let (original, reply) = flow(n);
    let (tuple, to) = if hit.dir == FlowDir::Original { (original, reply.inverse()) } else { (reply, original.inverse()) };
    let view = table.flow(hit);
    assert_eq!((view.tuple, view.to), (tuple, to));
    assert_eq!(
        (view.nat_src, view.nat_dst),
        (tuple.src != to.src || tuple.sport != to.sport, tuple.dst != to.dst || tuple.dport != to.dport)
    );
    let mut leg = if hit.dir == FlowDir::Original { init(n).original } else { init(n).reply };
    if !tuple.is_v4() {
        leg.l3_delta = 0;
    }
    assert_eq!((view.leg, view.generation), (leg, 7));
    assert_eq!(table.details(hit.entry, Ticks(0)).counter, n ^ 0x5555);
}

fn operations(short: u32) -> u32 {
    if std::env::var_os("WEIR_LONG").is_some() { short.saturating_mul(100) } else { short }
}

#[test]
fn a_flow_is_found_by_both_tuples_and_decoded_as_it_was_put_in() {
    let table = table(100, 1);
    let mut worker = table.worker().unwrap();
    for n in 0..90 {
        let (original, reply) = flow(n);
        let hit = table.insert(&mut worker, &original, &reply, &init(n), Ticks(5)).unwrap();
        assert_eq!(find(&table, &original), Some(hit));
        assert_eq!(find(&table, &reply), Some(Hit { dir: FlowDir::Reply, ..hit }));
        check(&table, hit, n);
        check(&table, Hit { dir: FlowDir::Reply, ..hit }, n);
        assert_eq!(table.insert(&mut worker, &original, &reply, &init(n), Ticks(5)), Err(InsertError::Exists(hit)));
    }
    assert_eq!(table.used(), 90);
    let tuples: Vec<_> = (0..64).map(|n| flow(n).0).collect();
    let (mut hashes, mut hits) = (vec![0; 64], vec![None; 64]);
    table.lookup_batch(&tuples, &mut hashes, &mut hits);
    for (tuple, hit) in tuples.iter().zip(hits) {
        assert_eq!(hit, find(&table, tuple));
    }
}

#[test]
fn a_reply_tuple_that_is_taken_refuses_the_whole_flow() {
    let table = table(100, 1);
    let mut worker = table.worker().unwrap();
    let (first, reply) = flow(1);
    let hit = table.insert(&mut worker, &first, &reply, &init(1), Ticks(0)).unwrap();
    let (second, _) = flow(2);
    let refused = table.insert(&mut worker, &second, &reply, &init(2), Ticks(0));
    assert_eq!(refused, Err(InsertError::Exists(Hit { dir: FlowDir::Reply, ..hit })));
    assert_eq!(find(&table, &second), None);
    assert_eq!((table.used(), table.owned(2)), (1, 0));
}

#[test]
fn a_flow_from_an_address_to_itself_has_one_tuple() {
    let table = table(4, 1);
    let mut worker = table.worker().unwrap();
    let loopback = Tuple { src: Ip::v4(1), dst: Ip::v4(1), sport: 9, dport: 9, proto: proto::ICMP };
    let hit = table.insert(&mut worker, &loopback, &loopback.inverse(), &init(1), Ticks(0)).unwrap();
    assert_eq!(find(&table, &loopback), Some(hit));
    assert!(table.remove(&mut worker, hit.entry) && !table.remove(&mut worker, hit.entry));
    assert_eq!(find(&table, &loopback), None);
}

#[test]
fn the_packet_that_opens_a_flow_is_counted_and_its_numbers_are_kept() {
    let table = table(4, 1);
    let mut worker = table.worker().unwrap();
    let numbers = Numbers { seq: 1100, ack: 7 };
    // 2 is TCP over IPv4, 3 UDP over IPv6, whose line has no room for numbers.
    for n in [2, 3] {
        let (original, reply) = flow(n);
        let first = FirstPacket { bytes: 60, numbers };
        let hit = table.insert(&mut worker, &original, &reply, &FlowInit { first, ..init(n) }, Ticks(9)).unwrap();
        check(&table, hit, n);
        let details = table.details(hit.entry, Ticks(9));
        assert_eq!((details.counts, details.last_seen), ([FlowCounts { packets: 1, bytes: 60 }, FlowCounts::default()], Ticks(9)));
        let answer = Hit { dir: FlowDir::Reply, ..hit };
        let acks = |ack| table.fit(answer, &table.flow(answer), tcp::SYN | tcp::ACK, Numbers { seq: 0, ack });
        if n == 2 {
            assert_eq!((acks(1101), acks(1100)), (Fit::Belongs, Fit::Invalid));
        }
    }
}

#[test]
fn counts_state_and_exit_change_in_their_own_direction() {
    let table = table(4, 1);
    let mut worker = table.worker().unwrap();
    let (original, reply) = flow(2);
    let hit = table.insert(&mut worker, &original, &reply, &init(2), Ticks(1000)).unwrap();
    let back = Hit { dir: FlowDir::Reply, ..hit };
    table.touch(hit, 60, Ticks(1001));
    table.touch(back, 1000, Ticks(1002));
    table.touch(back, 1000, Ticks(1003));
    let details = table.details(hit.entry, Ticks(1003 + 60_000));
    assert_eq!(details.counts, [FlowCounts { packets: 1, bytes: 60 }, FlowCounts { packets: 2, bytes: 2000 }]);
    assert_eq!((details.created, details.last_seen), (Ticks(1000), Ticks(1003)));
    assert_eq!(details.remaining_ms, 240_000 - 60_000);
    assert_eq!(table.advance(back, &table.flow(back), tcp::SYN | tcp::ACK), FlowState::SynRecv);
    assert_eq!(table.advance(hit, &table.flow(hit), tcp::ACK), FlowState::Established);
    assert_eq!((table.flow(hit).state, table.flow(back).state), (FlowState::Established, FlowState::Established));
    table.set_exit(back, 99, 8);
    assert_eq!((table.flow(back).leg.exit, table.flow(back).generation), (99, 8));
    assert_eq!((table.flow(hit).leg.exit, table.flow(hit).generation), (2, 7));
}

#[test]
fn flows_expire_by_their_last_packet_in_either_direction() {
    let table = table(16, 1);
    let mut worker = table.worker().unwrap();
    let start = Ticks(u32::MAX - 10_000); // the clock wraps meanwhile
    let udp = Tuple { src: Ip::v4(1), dst: Ip::v4(2), sport: 1000, dport: 5353, proto: proto::UDP };
    let unreplied = FlowInit { state: FlowState::Unreplied, ..init(1) };
    let hit = table.insert(&mut worker, &udp, &udp.inverse(), &unreplied, start).unwrap();
    let later = |ms: u32| Ticks(start.0.wrapping_add(ms));
    assert_eq!(table.expire(&mut worker, later(119_000), 16), 0);
    table.touch(Hit { dir: FlowDir::Reply, ..hit }, 1, later(119_000));
    assert_eq!(table.expire(&mut worker, later(121_000), 16), 0);
    assert_eq!(table.expire(&mut worker, Ticks(start.0 - 5), 16), 0, "a clock that is behind expires nothing");
    assert_eq!(table.expire(&mut worker, later(239_000), 16), 1);
    assert_eq!((table.used(), find(&table, &udp)), (0, None));
}

#[test]
fn a_flow_that_was_chosen_to_make_room_stays_once_it_has_a_reply() {
    const MAX: u32 = 64;
    let table = table(MAX, 1);
    let mut worker = table.worker().unwrap();
    let insert = |worker: &mut Worker, n: u32, state| {
        let (original, reply) = flow(n);
        table.insert(worker, &original, &reply, &FlowInit { state, ..init(n) }, Ticks(n))
    };
    for n in 0..MAX {
        let state = if n == 40 { FlowState::SynSent } else { FlowState::Established };
        insert(&mut worker, n, state).unwrap();
        table.quiescent(&mut worker);
    }
    let waiting = find(&table, &flow(40).0).unwrap();
    for now in 0..1000 {
        if worker.chosen.contains(&Some(waiting.entry)) {
            break;
        }
        table.evict_chosen(&mut worker, Ticks(now));
    }
    assert!(worker.chosen.contains(&Some(waiting.entry)), "nobody chose the only flow without a reply");
    let reply = Hit { dir: FlowDir::Reply, ..waiting };
    assert_eq!(table.advance(reply, &table.flow(reply), tcp::SYN | tcp::ACK), FlowState::SynRecv);
    for now in 0..1000 {
        table.evict_chosen(&mut worker, Ticks(now));
    }
    assert!((0..MAX).all(|n| find(&table, &flow(n).0).is_some()), "a flow with a reply was evicted");
}

/// Established flows that came before lie together in the table, and a hand that goes round would find nothing for as long as it
/// passes them.
#[test]
fn a_flood_makes_room_for_itself_while_most_of_the_table_is_established() {
    const MAX: u32 = 16_384;
    let table = table(MAX, 1);
    let mut worker = table.worker().unwrap();
    let mut refused_at = Vec::new();
    for n in 0..4 * MAX {
        let (original, reply) = flow(n);
        let state = if n < MAX * 5 / 8 { FlowState::Established } else { FlowState::SynSent };
        // 32 a batch, at 1 M packets a second.
        if table.insert(&mut worker, &original, &reply, &FlowInit { state, ..init(n) }, Ticks(n / 1000)).is_err() {
            refused_at.push(n);
        }
        if n % 32 == 31 {
            table.quiescent(&mut worker);
        }
    }
    assert!(table.used() > MAX - MAX / 8, "{} flows: room was made that nobody needed", table.used());
    assert!((0..MAX * 5 / 8).all(|n| find(&table, &flow(n).0).is_some()), "an established flow was evicted");
    // A few find both of their index lines full.
    assert!(refused_at.len() < 16, "{} were refused: {refused_at:?}", refused_at.len());
    // Of those that wait for a reply the old ones go first.
    let alive = |range: std::ops::Range<u32>| range.filter(|n| find(&table, &flow(*n).0).is_some()).count();
    assert_eq!(alive(MAX * 5 / 8..3 * MAX), 0);
}

#[test]
fn a_full_table_refuses_and_counts_and_lets_only_unreplied_flows_die() {
    let table = table(64, 1);
    let mut worker = table.worker().unwrap();
    for n in 0..64 {
        let (original, reply) = flow(n);
        let state = if n < 32 { FlowState::Established } else { FlowState::SynSent };
        table.insert(&mut worker, &original, &reply, &FlowInit { state, ..init(n) }, Ticks(0)).unwrap();
    }
    let mut entered = 0;
    for n in 100..1100 {
        let (original, reply) = flow(n);
        match table.insert(&mut worker, &original, &reply, &FlowInit { state: FlowState::Established, ..init(n) }, Ticks(n)) {
            Ok(_) => entered += 1,
            Err(error) => assert_eq!(error, InsertError::Full),
        }
        table.quiescent(&mut worker);
    }
    assert_eq!((entered, table.used(), table.refused()), (32, 64, 1000 - 32));
    assert!((0..32).all(|n| find(&table, &flow(n).0).is_some()), "an established flow was evicted");
}

#[test]
fn an_owner_gets_its_share_and_no_more() {
    let table = ConnTable::new(&TableConfig { max: 100, key: 1, workers: 1, owners: 2, share: 3 }).unwrap();
    let mut worker = table.worker().unwrap();
    let mut insert = |n: u32, owner| {
        let (original, reply) = flow(n);
        table.insert(&mut worker, &original, &reply, &FlowInit { owner, ..init(n) }, Ticks(0))
    };
    let hits: Vec<_> = (0..3).map(|n| insert(n, 1).unwrap()).collect();
    assert_eq!(insert(3, 1), Err(InsertError::ShareExceeded));
    assert!(insert(4, 0).is_ok() && insert(5, NO_OWNER).is_ok());
    assert!(table.remove(&mut worker, hits[0].entry));
    assert_eq!(table.owned(1), 2);
}

#[test]
fn an_owner_at_its_share_loses_what_waits_for_a_reply_and_nothing_of_others() {
    let table = ConnTable::new(&TableConfig { max: 100, key: 1, workers: 1, owners: 2, share: 3 }).unwrap();
    let mut worker = table.worker().unwrap();
    let mut insert = |n: u32, owner, now| {
        let (original, reply) = flow(n);
        table.insert(&mut worker, &original, &reply, &FlowInit { owner, ..init(n) }, Ticks(now))
    };
    insert(0, 0, 0).unwrap();
    for n in 1..4 {
        insert(n, 1, 0).unwrap();
    }
    assert_eq!(insert(4, 1, 999), Err(InsertError::ShareExceeded), "the peers had no time to answer");
    for n in [1, 2] {
        let back = find(&table, &flow(n).1).unwrap();
        assert!(!table.advance(back, &table.flow(back), tcp::SYN | tcp::ACK).is_unreplied());
    }
    // The hand may have to come round first.
    assert!((0..2).any(|_| insert(4, 1, 1000).is_ok()));
    let there: Vec<u32> = (0..5).filter(|n| find(&table, &flow(*n).0).is_some()).collect();
    assert_eq!((there, table.owned(0), table.owned(1)), (vec![0, 1, 2, 4], 1, 3));
}

#[test]
fn an_entry_is_not_reused_while_another_thread_may_hold_it() {
    let table = table(1, 2);
    let (mut worker, mut other) = (table.worker().unwrap(), table.worker().unwrap());
    let (original, reply) = flow(1);
    let hit = table.insert(&mut worker, &original, &reply, &init(1), Ticks(0)).unwrap();
    table.remove(&mut worker, hit.entry);
    let (next, next_reply) = flow(2);
    for _ in 0..5 {
        table.quiescent(&mut worker);
        assert_eq!(table.insert(&mut worker, &next, &next_reply, &init(2), Ticks(0)), Err(InsertError::Full));
        check(&table, hit, 1);
    }
    table.park(&mut other);
    table.quiescent(&mut worker);
    assert!(table.insert(&mut worker, &next, &next_reply, &init(2), Ticks(0)).is_ok());
}

#[test]
fn a_dump_in_pieces_gives_every_flow_once_and_handles_go_from_hand_to_hand() {
    let table = table(1000, 1);
    let mut reader = table.reader().unwrap();
    assert_eq!(table.dump(&mut reader, 0, 10, Ticks(0), |_| panic!("empty")), None);
    for n in 0..900 {
        // Each worker leaves its free entries to the next.
        let mut worker = table.worker().unwrap();
        assert!(table.worker().is_none());
        let (original, reply) = flow(n);
        table.insert(&mut worker, &original, &reply, &init(n), Ticks(0)).unwrap();
    }
    let (mut seen, mut from) = (Vec::new(), Some(0));
    while let Some(start) = from {
        from = table.dump(&mut reader, start, 7, Ticks(0), |record| {
            check(&table, Hit { entry: record.entry, dir: FlowDir::Reply }, record.original.leg.exit);
            seen.push(record.original.leg.exit);
        });
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..900));
}

#[test]
fn a_table_at_its_limit_has_room_in_the_index_whatever_the_tuples_look_like() {
    for (name, tuple) in [("sequential ports", 0u32), ("sequential addresses", 1), ("random", 2)] {
        let max = 200_000;
        let table = table(max, 1);
        let mut worker = table.worker().unwrap();
        let mut rng = fastrand::Rng::with_seed(4);
        let mut refused = 0;
        for n in 0..max {
            let (src, dst, sport, dport) = match tuple {
                0 => (0x0a00_0001, 0x0a00_0002 + n / 60_000, (n % 60_000) as u16, 80),
                1 => (0x0a00_0000 + n, 0x0a60_0001, 40_000, 443),
                _ => (rng.u32(..), rng.u32(..), rng.u16(..), rng.u16(..)),
            };
            let original = Tuple { src: Ip::v4(src), dst: Ip::v4(dst), sport, dport, proto: proto::UDP };
            refused += u32::from(table.insert(&mut worker, &original, &original.inverse(), &init(n), Ticks(0)).is_err());
        }
        let histogram = table.index.histogram();
        // At load 0.6 a bucket holds 4.8 of 8 on average; a hash with structure leaves many empty and many full.
        let share = |words: usize| histogram[words] as f64 / histogram.iter().sum::<usize>() as f64;
        assert!(share(8) < 0.006 && share(0) < 0.012, "{name}: {histogram:?}");
        assert!(refused <= max / 50_000, "{name}: {refused} flows found both of their buckets full");
    }
}

#[test]
fn tuples_chosen_to_collide_under_one_key_do_not_collide_under_another() {
    let (known, secret) = (table(1000, 1), ConnTable::new(&TableConfig { max: 1000, key: 99, workers: 1, owners: 0, share: 0 }).unwrap());
    let wanted = known.hash(&flow(1).0) >> 52;
    let mut rng = fastrand::Rng::with_seed(5);
    let mut places = HashMap::new();
    let mut found = 0;
    while found < 64 {
        let tuple = Tuple { src: Ip::v4(rng.u32(..)), dst: Ip::v4(5), sport: rng.u16(..), dport: 53, proto: proto::UDP };
        if known.hash(&tuple) >> 52 == wanted {
            *places.entry(secret.hash(&tuple) >> 52).or_insert(0) += 1;
            found += 1;
        }
    }
    assert!(places.values().all(|count| *count <= 4), "{places:?}");
}

#[test]
fn random_operations_agree_with_a_map() {
    let table = table(512, 1);
    let mut worker = table.worker().unwrap();
    let mut rng = fastrand::Rng::with_seed(6);
    // By tuple: the flow's number and what was found; by number: the entry.
    let mut tuples: HashMap<Tuple, (u32, Hit)> = HashMap::new();
    let mut flows: HashMap<u32, EntryId> = HashMap::new();
    let mut refused = 0;
    for step in 0..operations(1_000_000) {
        let n = rng.u32(0..800);
        let (original, reply) = flow(n);
        match rng.u32(0..10) {
            0..4 => {
                let expected = [&original, &reply].into_iter().find_map(|tuple| tuples.get(tuple));
                match (table.insert(&mut worker, &original, &reply, &FlowInit { state: FlowState::Replied, ..init(n) }, Ticks(0)), expected)
                {
                    (Ok(hit), None) => {
                        tuples.insert(original, (n, hit));
                        tuples.insert(reply, (n, Hit { dir: FlowDir::Reply, ..hit }));
                        flows.insert(n, hit.entry);
                    }
                    (Err(InsertError::Exists(hit)), Some((_, known))) => assert_eq!(hit, *known, "step {step}"),
                    // Entries that were removed count until the next quiescent points.
                    (Err(InsertError::Full), None) => refused += 1,
                    other => panic!("step {step}: {other:?}"),
                }
            }
            4..7 => {
                for tuple in [&original, &reply] {
                    let hit = find(&table, tuple);
                    assert_eq!(hit, tuples.get(tuple).map(|(_, hit)| *hit), "step {step}");
                    if let Some(hit) = hit {
                        check(&table, hit, n);
                    }
                }
            }
            7..9 => {
                if let Some(entry) = flows.remove(&n) {
                    assert!(table.remove(&mut worker, entry));
                    tuples.remove(&original);
                    tuples.remove(&reply);
                }
            }
            _ => table.quiescent(&mut worker),
        }
        assert_eq!(table.used() as usize, flows.len());
    }
    assert!(refused > 0 && table.refused() == refused, "the table was never full");
    for owner in 0..8 {
        assert_eq!(table.owned(owner) as usize, flows.keys().filter(|n| **n % 8 == owner).count());
    }
}

/// Each thread inserts flows that the others insert too and removes those of its own; readers look on. A tuple that two
/// threads hold at once, a flow that is seen half, or one that changes under a reader's eyes fails.
#[test]
fn threads_never_hold_one_tuple_twice_and_readers_never_see_half() {
    const WRITERS: u32 = 3;
    const READERS: u32 = 2;
    const TUPLES: u32 = 200;
    let table = table(256, WRITERS + READERS);
    // Per number, held by some thread: set after its insertion, cleared before its removal.
    let held: Vec<AtomicU32> = (0..TUPLES).map(|_| AtomicU32::new(0)).collect();
    let done = AtomicBool::new(false);
    let count = operations(200_000);
    std::thread::scope(|scope| {
        let (table, held, done) = (&table, &held, &done);
        let writers: Vec<_> = (0..WRITERS)
            .map(|id| {
                scope.spawn(move || {
                    let mut worker = table.worker().unwrap();
                    let mut rng = fastrand::Rng::with_seed(u64::from(id));
                    let mut mine: HashMap<u32, EntryId> = HashMap::new();
                    for step in 0..count {
                        let n = rng.u32(0..TUPLES);
                        let (original, reply) = flow(n);
                        if let Some(entry) = mine.remove(&n) {
                            held[n as usize].store(0, Ordering::SeqCst);
                            assert!(table.remove(&mut worker, entry), "a flow vanished");
                        } else {
                            match table.insert(&mut worker, &original, &reply, &FlowInit { state: FlowState::Replied, ..init(n) }, Ticks(0))
                            {
                                Ok(hit) => {
                                    assert_eq!(held[n as usize].swap(id + 1, Ordering::SeqCst), 0, "flow {n} was entered twice");
                                    check(table, hit, n);
                                    assert_eq!(find(table, &original), Some(hit));
                                    assert_eq!(find(table, &reply), Some(Hit { dir: FlowDir::Reply, ..hit }));
                                    mine.insert(n, hit.entry);
                                }
                                Err(InsertError::Exists(hit)) => check(table, hit, n),
                                Err(InsertError::Busy | InsertError::Full) => {}
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                        if step % 16 == 0 {
                            table.quiescent(&mut worker);
                        }
                    }
                    mine.len() as u32
                })
            })
            .collect();
        for id in 0..READERS {
            scope.spawn(move || {
                let mut worker = table.worker().unwrap();
                let mut reader = table.reader().unwrap();
                let mut rng = fastrand::Rng::with_seed(100 + u64::from(id));
                while !done.load(Ordering::Relaxed) {
                    for _ in 0..32 {
                        let n = rng.u32(0..TUPLES);
                        let (original, reply) = flow(n);
                        for tuple in [&original, &reply] {
                            if let Some(hit) = find(table, tuple) {
                                check(table, hit, n);
                                table.touch(hit, 1, Ticks(0));
                            }
                        }
                    }
                    table.quiescent(&mut worker);
                    table.dump(&mut reader, 0, u32::MAX, Ticks(0), |record| {
                        assert_eq!(record.reply.tuple, flow(record.original.leg.exit).1);
                    });
                }
            });
        }
        let left: u32 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        assert_eq!((table.used(), held.iter().filter(|holder| holder.load(Ordering::SeqCst) != 0).count() as u32), (left, left));
    });
}

#[test]
fn a_flow_is_counted_from_its_insertion_until_its_connection_is_over_or_it_is_removed() {
    let table = table(100, 1).with_counters(3);
    let mut worker = table.worker().unwrap();
    let mut open = |n: u32, counter| {
        let (original, reply) = flow(n);
        table.insert(&mut worker, &original, &reply, &FlowInit { counter, state: FlowState::SynSent, ..init(0) }, Ticks(0)).unwrap()
    };
    // Even numbers are TCP.
    let hits = [open(2, 1), open(4, 1), open(8, 2), open(10, NOT_COUNTED)];
    let counts = || [0, 1, 2, 3].map(|counter| table.counted(counter));
    assert_eq!(counts(), [Some(0), Some(2), Some(1), None]);
    let view = table.flow(hits[0]);
    assert!(table.advance(hits[0], &view, tcp::RST).is_over());
    assert_eq!(counts(), [Some(0), Some(1), Some(1), None], "it was reset");
    for hit in hits {
        assert!(table.remove(&mut worker, hit.entry));
    }
    assert_eq!(counts(), [Some(0), Some(0), Some(0), None], "each is taken off once");
    let (original, reply) = flow(2);
    table.insert(&mut worker, &original, &reply, &FlowInit { counter: 0, ..init(0) }, Ticks(0)).unwrap();
    assert!(table.insert(&mut worker, &original, &reply, &FlowInit { counter: 0, ..init(0) }, Ticks(0)).is_err());
    assert_eq!(table.counted(0), Some(1), "a flow that is refused is not counted");
    for _ in 0..10 {
        table.expire(&mut worker, Ticks(u32::MAX / 4), 100);
    }
    assert_eq!(table.counted(0), Some(0));
}

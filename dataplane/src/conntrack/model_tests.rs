//! The protocol under checkers, on the real code.
//!
//! `loom_*` try all interleavings (with at most so many preemptions as [`loom`] below says, and all reorderings that the
//! memory model allows) on a table of two buckets of two words. `shuttle_*` try many random ones on a larger table.

use super::*;
use crate::model::{Ip, proto};

fn config(max: u32, workers: u32) -> TableConfig {
    TableConfig { max, key: 1, workers, owners: 1, share: max }
}

fn tuple(n: u32) -> Tuple {
    Tuple { src: Ip::v4(n), dst: Ip::v4(1000), sport: 1, dport: 80, proto: proto::UDP }
}

#[cfg(feature = "loom")]
/// A reply tuple that is the inverse of none of [`tuple`]'s.
fn answer(n: u32) -> Tuple {
    Tuple { src: Ip::v4(2000), dst: Ip::v4(n), sport: 80, dport: 1, proto: proto::UDP }
}

fn init(number: u32) -> FlowInit {
    let leg = Leg { exit: number, l3_delta: number as u16, l4_delta: number as u16 };
    let first = FirstPacket::NONE;
    FlowInit { original: leg, reply: leg, first, generation: number, owner: 0, counter: number, state: FlowState::Replied }
}

fn find(table: &ConnTable, tuple: &Tuple) -> Option<Hit> {
    table.lookup(table.hash(tuple), tuple)
}

/// Asserts that a hit for `tuple` is that tuple and that all parts of the flow are of one insertion.
fn check(table: &ConnTable, hit: Hit, tuple: &Tuple) {
    let view = table.flow(hit);
    assert_eq!(view.tuple, *tuple);
    let number = table.details(hit.entry, Ticks(0)).counter;
    assert_eq!((view.leg, view.generation), (init(number).original, number));
}

#[cfg(feature = "loom")]
mod with_loom {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn explore(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 20_000;
        builder.check(test);
    }

    type Outcome = Result<Hit, InsertError>;

    /// Two threads insert a flow each; gives both outcomes, and the table.
    fn race(first: (Tuple, Tuple), second: (Tuple, Tuple)) -> (Arc<ConnTable>, Worker, [Outcome; 2]) {
        let table = Arc::new(ConnTable::new(&config(2, 2)).unwrap());
        let other = thread::spawn({
            let table = Arc::clone(&table);
            let mut worker = table.worker().unwrap();
            move || {
                let outcome = table.insert(&mut worker, &second.0, &second.1, &init(2), Ticks(0));
                if let Err(InsertError::Exists(hit)) = outcome {
                    let tuple = table.flow(hit).tuple;
                    assert!(tuple == second.0 || tuple == second.1);
                    check(&table, hit, &tuple);
                }
                outcome
            }
        });
        let mut worker = table.worker().unwrap();
        let mine = table.insert(&mut worker, &first.0, &first.1, &init(1), Ticks(0));
        let outcomes = [mine, other.join().unwrap()];
        (table, worker, outcomes)
    }

    #[test]
    fn loom_of_two_that_insert_one_flow_one_wins_and_the_other_learns_of_it() {
        explore(2, || {
            let (table, _worker, outcomes) = race((tuple(1), answer(1)), (tuple(1), answer(1)));
            let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.ok()).collect();
            assert_eq!(won.len(), 1, "{outcomes:?}");
            assert!(outcomes.iter().all(|outcome| match outcome {
                Ok(hit) | Err(InsertError::Exists(hit)) => hit.entry == won[0].entry,
                Err(error) => matches!(error, InsertError::Busy | InsertError::Full),
            }));
            assert_eq!(find(&table, &tuple(1)), Some(won[0]));
            assert_eq!(find(&table, &answer(1)), Some(Hit { dir: FlowDir::Reply, ..won[0] }));
            assert_eq!((table.used(), table.owned(0)), (1, 1));
        });
    }

    #[test]
    fn loom_flows_that_share_a_tuple_crosswise_never_both_live() {
        // The one's reply is the other's original.
        explore(2, || {
            let (table, _worker, outcomes) = race((tuple(1), answer(1)), (answer(1), tuple(2)));
            assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
            assert_eq!(table.used(), 1);
            assert!(find(&table, &tuple(1)).is_some() != find(&table, &tuple(2)).is_some());
        });
    }

    #[test]
    fn loom_a_flow_that_was_seen_is_decided() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(2, 2)).unwrap());
            let other = thread::spawn({
                let table = Arc::clone(&table);
                let mut worker = table.worker().unwrap();
                move || {
                    let seen = find(&table, &answer(1));
                    let outcome = table.insert(&mut worker, &tuple(1), &answer(2), &init(2), Ticks(0));
                    assert!(seen.is_none() || outcome.is_err(), "{outcome:?} beside {seen:?}");
                }
            });
            let mut worker = table.worker().unwrap();
            let _ = table.insert(&mut worker, &tuple(1), &answer(1), &init(1), Ticks(0));
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_a_reader_sees_whole_flows_only_while_one_comes_and_goes() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(1, 2)).unwrap());
            let reader = thread::spawn({
                let table = Arc::clone(&table);
                let worker = table.worker().unwrap();
                move || {
                    if let Some(hit) = find(&table, &answer(1)) {
                        check(&table, hit, &answer(1));
                        table.touch(hit, 1, Ticks(1));
                        check(&table, hit, &answer(1));
                    }
                    drop(worker);
                }
            });
            let mut worker = table.worker().unwrap();
            let hit = table.insert(&mut worker, &tuple(1), &answer(1), &init(1), Ticks(0)).unwrap();
            assert!(table.remove(&mut worker, hit.entry));
            assert_eq!(find(&table, &tuple(1)), None);
            reader.join().unwrap();
        });
    }

    #[test]
    fn loom_an_entry_is_not_reused_under_a_readers_eyes() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(1, 2)).unwrap());
            let mut worker = table.worker().unwrap();
            let hit = table.insert(&mut worker, &tuple(1), &answer(1), &init(1), Ticks(0)).unwrap();
            let reader = thread::spawn({
                let table = Arc::clone(&table);
                let mut reader = table.worker().unwrap();
                move || {
                    for _ in 0..2 {
                        if let Some(hit) = find(&table, &tuple(1)) {
                            check(&table, hit, &tuple(1));
                        }
                        table.quiescent(&mut reader);
                    }
                }
            });
            assert!(table.remove(&mut worker, hit.entry));
            for _ in 0..3 {
                table.quiescent(&mut worker);
                // The same entry under another tuple, as soon as that is allowed.
                if table.insert(&mut worker, &tuple(2), &answer(2), &init(2), Ticks(0)).is_ok() {
                    break;
                }
            }
            reader.join().unwrap();
        });
    }

    #[test]
    fn loom_a_thread_that_wakes_is_waited_for_or_sees_the_removal() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(1, 2)).unwrap());
            let mut worker = table.worker().unwrap();
            let hit = table.insert(&mut worker, &tuple(1), &answer(1), &init(1), Ticks(0)).unwrap();
            let sleeper = thread::spawn({
                let table = Arc::clone(&table);
                let mut sleeper = table.worker().unwrap();
                table.park(&mut sleeper);
                move || {
                    table.quiescent(&mut sleeper);
                    if let Some(hit) = find(&table, &tuple(1)) {
                        check(&table, hit, &tuple(1));
                    }
                }
            });
            assert!(table.remove(&mut worker, hit.entry));
            for _ in 0..2 {
                table.quiescent(&mut worker);
            }
            let _ = table.insert(&mut worker, &tuple(2), &answer(2), &init(2), Ticks(0));
            sleeper.join().unwrap();
        });
    }

    #[test]
    fn loom_of_two_that_remove_one_flow_one_is_told_so() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(1, 2)).unwrap());
            let mut worker = table.worker().unwrap();
            let hit = table.insert(&mut worker, &tuple(1), &answer(1), &init(1), Ticks(0)).unwrap();
            let other = thread::spawn({
                let table = Arc::clone(&table);
                let mut other = table.worker().unwrap();
                move || table.remove(&mut other, hit.entry)
            });
            let mine = table.remove(&mut worker, hit.entry);
            assert!(mine != other.join().unwrap());
            assert_eq!((table.used(), table.owned(0), find(&table, &answer(1))), (0, 0, None));
        });
    }

    #[test]
    fn loom_a_change_while_a_flow_becomes_visible_is_not_lost() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(1, 2)).unwrap());
            let mut worker = table.worker().unwrap();
            let (mut syn, mut back) = (tuple(1), answer(1));
            (syn.proto, back.proto) = (proto::TCP, proto::TCP);
            let other = thread::spawn({
                let table = Arc::clone(&table);
                move || find(&table, &back).map(|reply| table.advance(reply, &table.flow(reply), tcp::SYN | tcp::ACK))
            });
            let init = FlowInit { state: FlowState::SynSent, ..init(1) };
            let hit = table.insert(&mut worker, &syn, &back, &init, Ticks(0)).unwrap();
            let changed = other.join().unwrap();
            let state = changed.unwrap_or(FlowState::SynSent);
            assert_ne!(changed, Some(FlowState::SynSent));
            assert_eq!((find(&table, &syn), find(&table, &back)), (Some(hit), Some(Hit { dir: FlowDir::Reply, ..hit })));
            assert_eq!([table.flow(hit).state, table.flow(Hit { dir: FlowDir::Reply, ..hit }).state], [state; 2]);
        });
    }

    #[test]
    fn loom_both_lines_agree_on_the_state_after_concurrent_changes() {
        explore(3, || {
            let table = Arc::new(ConnTable::new(&config(1, 2)).unwrap());
            let mut worker = table.worker().unwrap();
            let (mut syn, mut back) = (tuple(1), answer(1));
            (syn.proto, back.proto) = (proto::TCP, proto::TCP);
            let init = FlowInit { state: FlowState::SynRecv, ..init(1) };
            let hit = table.insert(&mut worker, &syn, &back, &init, Ticks(0)).unwrap();
            let reply = Hit { dir: FlowDir::Reply, ..hit };
            let other = thread::spawn({
                let table = Arc::clone(&table);
                move || table.advance(reply, &table.flow(reply), tcp::FIN | tcp::ACK)
            });
            table.advance(hit, &table.flow(hit), tcp::ACK);
            other.join().unwrap();
            assert_eq!(table.flow(hit).state, table.flow(reply).state);
            // Which of the two came first is open.
            assert!(matches!(table.flow(hit).state, FlowState::FinWait | FlowState::CloseWait));
        });
    }
}

#[cfg(all(feature = "shuttle", not(feature = "loom")))]
mod with_shuttle {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use shuttle::rand::{Rng, thread_rng};
    use shuttle::thread;

    use super::*;

    const WORKERS: u32 = 3;
    const FLOWS: u32 = 4;
    const STEPS: u32 = 24;

    /// Three workers enter and remove four flows, of which each shares a tuple with the next, in a table of six.
    fn scuffle() {
        let table = Arc::new(ConnTable::new(&config(6, WORKERS)).unwrap());
        // Per tuple, who holds it: plain atomics, as they only observe.
        let held: Arc<Vec<AtomicU32>> = Arc::new((0..=FLOWS).map(|_| AtomicU32::new(0)).collect());
        let threads: Vec<_> = (1..=WORKERS)
            .map(|id| {
                let (table, held) = (Arc::clone(&table), Arc::clone(&held));
                thread::spawn(move || {
                    let mut worker = table.worker().unwrap();
                    let mut mine: HashMap<u32, EntryId> = HashMap::new();
                    for _ in 0..STEPS {
                        let n = thread_rng().gen_range(0..FLOWS);
                        // Flow n is found by tuples n and n + 1; so n and n + 1 exclude each other.
                        let pair = [tuple(n), tuple(n + 1)];
                        if let Some(entry) = mine.remove(&n) {
                            (n..n + 2).for_each(|tuple| held[tuple as usize].store(0, Ordering::SeqCst));
                            assert!(table.remove(&mut worker, entry), "flow {n} vanished");
                        } else {
                            match table.insert(&mut worker, &pair[0], &pair[1], &init(n), Ticks(0)) {
                                Ok(hit) => {
                                    for tuple in n..n + 2 {
                                        assert_eq!(held[tuple as usize].swap(id, Ordering::SeqCst), 0, "tuple {tuple} is held twice");
                                    }
                                    assert_eq!(find(&table, &pair[0]), Some(hit));
                                    assert_eq!(find(&table, &pair[1]), Some(Hit { dir: FlowDir::Reply, ..hit }));
                                    mine.insert(n, hit.entry);
                                }
                                Err(InsertError::Exists(hit)) => check(&table, hit, &pair[usize::from(table.flow(hit).tuple == pair[1])]),
                                Err(InsertError::Full | InsertError::Busy) => {}
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                        let wanted = tuple(thread_rng().gen_range(0..=FLOWS));
                        if let Some(hit) = find(&table, &wanted) {
                            check(&table, hit, &wanted);
                            table.touch(hit, 1, Ticks(0));
                        }
                        if thread_rng().gen_range(0..3) == 0 {
                            table.quiescent(&mut worker);
                        }
                    }
                    mine.len() as u32
                })
            })
            .collect();
        let left: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!((table.used(), table.owned(0)), (left, left));
    }

    fn iterations() -> usize {
        if std::env::var_os("WEIR_LONG").is_some() { 1_000_000 } else { 5_000 }
    }

    #[test]
    fn shuttle_workers_in_random_order_never_hold_one_tuple_twice() {
        shuttle::check_random(scuffle, iterations());
    }

    #[test]
    fn shuttle_workers_with_rare_and_wicked_switches_never_hold_one_tuple_twice() {
        shuttle::check_pct(scuffle, iterations(), 3);
    }
}

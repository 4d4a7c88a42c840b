//! Gathers what the workers note, keeps the latest decisions and hands everything on to whoever follows.
//!
//! Runs on a thread of its own. Records get their names when somebody asks, or before the tables that they were decided by go.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Serialize};

use super::{Filter, Flow, Namer, Reader, Record};
use crate::events::{Fate, is_decision};
use crate::tables::Tables;

/// Decisions kept for who asks later.
pub const RECENT_MAX: usize = 4096;
/// Events that wait for one follower.
const WAITING_MAX: usize = 8192;
/// How often the rings are emptied while somebody follows: 8,192 records hold what a worker forwards in that time.
const TURN_FOLLOWED: Duration = Duration::from_millis(5);
/// How often otherwise, when only decisions come.
const TURN_IDLE: Duration = Duration::from_millis(100);

/// Which of the kept events are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Query {
    /// What they are like.
    pub filter: Filter,
    /// Of those, only so many of the oldest.
    pub first: Option<usize>,
    /// Of those, only so many of the latest.
    pub last: Option<usize>,
    /// Not older than this, nanoseconds since 1970.
    pub since: Option<u64>,
    /// Not newer than this.
    pub until: Option<u64>,
    /// And everything that comes from now on.
    pub follow: bool,
}

/// Where events of all workers meet.
pub struct Hub {
    started: Instant,
    /// Workers note every packet while this is set, else decisions alone.
    everything: Arc<AtomicBool>,
    state: Mutex<State>,
    /// Wakes the thread before its time.
    wake: Condvar,
}

struct State {
    readers: Vec<Reader>,
    /// By generation: all that workers may still work by, and those before whose records have no names yet.
    namers: BTreeMap<u32, Namer>,
    /// No worker works by tables before these.
    settled: u32,
    recent: VecDeque<Kept>,
    followers: Vec<Follower>,
    /// Lost in the rings so far.
    lost: u64,
    ended: bool,
}

/// A decision that was kept. `time` is nanoseconds since 1970.
enum Kept {
    Raw { time: u64, generation: u32, fate: Box<Fate> },
    Named(Arc<Flow>),
}

struct Follower {
    wants_known: bool,
    events: Sender<Arc<Flow>>,
    lost: Arc<AtomicU64>,
}

/// Somebody's subscription; ends when dropped.
pub struct Following {
    /// The events as they come, unfiltered.
    pub events: Receiver<Arc<Flow>>,
    lost: Arc<AtomicU64>,
}

impl Following {
    /// How many events were lost to this follower since it was asked last, in the rings or for its own slowness.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl Hub {
    /// Gathers from `readers`. Workers count time from `started` and look at `everything`.
    pub fn new(readers: Vec<Reader>, started: Instant, everything: Arc<AtomicBool>, tables: Arc<Tables>) -> Self {
        let state = State {
            readers,
            settled: tables.generation,
            namers: BTreeMap::from([(tables.generation, Namer::new(tables))]),
            recent: VecDeque::with_capacity(RECENT_MAX),
            followers: Vec::new(),
            lost: 0,
            ended: false,
        };
        Self { started, everything, state: Mutex::new(state), wake: Condvar::new() }
    }

    /// Gathers until [`end`](Self::end).
    pub fn run(&self) {
        let mut state = self.lock();
        while !state.ended {
            self.turn(&mut state);
            let pause = if state.followers.is_empty() { TURN_IDLE } else { TURN_FOLLOWED };
            state = self.wake.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends [`run`](Self::run).
    pub fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.followers.clear();
        self.wake.notify_all();
    }

    /// Says that workers will work by these tables from now on.
    pub fn expect(&self, tables: Arc<Tables>) {
        self.lock().namers.insert(tables.generation, Namer::new(tables));
    }

    /// Says that no worker works by older tables any more.
    pub fn settle(&self, generation: u32) {
        self.lock().settled = generation;
    }

    /// Events that rings had no room for, by worker.
    pub fn lost(&self) -> Vec<u64> {
        self.lock().readers.iter().map(Reader::lost).collect()
    }

    /// What was kept of what is asked for, in order of time, and a subscription where it is wanted; no event is between the two.
    pub fn ask(&self, query: &Query) -> (Vec<Arc<Flow>>, Option<Following>) {
        let mut state = self.lock();
        self.turn(&mut state);
        let state = &mut *state;
        let in_time = |flow: &Flow| query.since.is_none_or(|t| flow.time >= t) && query.until.is_none_or(|t| flow.time <= t);
        let wanted = |kept: &mut Kept| Some(kept.named(&mut state.namers)?).filter(|flow| in_time(flow) && query.filter.wants(flow));
        let mut found: Vec<Arc<Flow>> = match (query.first, query.last) {
            (Some(count), _) => state.recent.iter_mut().filter_map(wanted).take(count).collect(),
            (None, Some(count)) => state.recent.iter_mut().rev().filter_map(wanted).take(count).collect(),
            (None, None) => state.recent.iter_mut().filter_map(wanted).collect(),
        };
        if query.first.is_none() && query.last.is_some() {
            found.reverse();
        }
        let following = query.follow.then(|| {
            let (sender, events) = bounded(WAITING_MAX);
            let lost = Arc::new(AtomicU64::new(0));
            state.followers.push(Follower { wants_known: query.filter.wants_known(), events: sender, lost: lost.clone() });
            self.everything.store(state.followers.iter().any(|f| f.wants_known), Ordering::Relaxed);
            self.wake.notify_all();
            Following { events, lost }
        });
        (found, following)
    }

    /// Empties the rings once.
    fn turn(&self, state: &mut State) {
        // Before the rings: whatever was noted under older tables is in them by now.
        let settled = state.settled;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        // The workers' clock never jumps, the calendar may.
        let epoch = now.saturating_sub(self.started.elapsed().as_nanos() as u64);
        let mut records: Vec<Record> = Vec::new();
        state.readers.iter_mut().for_each(|reader| reader.drain(|record| records.push(record)));
        records.sort_by_key(|record| record.time);
        for Record { time, generation, fate } in records {
            let decision = is_decision(fate.verdict, fate.trail.state);
            let mut kept = Kept::Raw { time: epoch + time, generation, fate: Box::new(fate) };
            if !state.followers.is_empty()
                && let Some(flow) = kept.named(&mut state.namers)
            {
                state.followers.retain(|follower| follower.tell(&flow));
            }
            if decision {
                if state.recent.len() == RECENT_MAX {
                    state.recent.pop_front();
                }
                state.recent.push_back(kept);
            }
        }
        let lost = state.readers.iter().map(Reader::lost).sum();
        for follower in &state.followers {
            follower.lost.fetch_add(lost - state.lost, Ordering::Relaxed);
        }
        state.lost = lost;
        self.everything.store(state.followers.iter().any(|f| f.wants_known), Ordering::Relaxed);
        state.forget_tables_before(settled);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Names what was decided by older tables and lets them go.
    fn forget_tables_before(&mut self, generation: u32) {
        if self.namers.first_key_value().is_none_or(|(oldest, _)| *oldest >= generation) {
            return;
        }
        for kept in &mut self.recent {
            if matches!(kept, Kept::Raw { generation: of, .. } if *of < generation) {
                kept.named(&mut self.namers);
            }
        }
        self.namers = self.namers.split_off(&generation);
    }
}

impl Kept {
    /// The event in names; `None` where its tables are gone.
    fn named(&mut self, namers: &mut BTreeMap<u32, Namer>) -> Option<Arc<Flow>> {
        if let Self::Raw { time, generation, fate } = self {
            let flow = namers.get_mut(generation)?.flow(*time, fate);
            *self = Self::Named(Arc::new(flow));
        }
        match self {
            Self::Named(flow) => Some(flow.clone()),
            Self::Raw { .. } => None,
        }
    }
}

impl Follower {
    /// Hands an event over; `false` once the follower has gone.
    fn tell(&self, flow: &Arc<Flow>) -> bool {
        match self.events.try_send(flow.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{CtState, Trail};
    use crate::flows::{Writer, ring};
    use crate::io::PortId;
    use crate::model::{Node, NodeConfig, NodeState};
    use crate::runtime::Runtime;
    use crate::verdict::{DropReason, Verdict};

    fn tables(generation: u32) -> Arc<Tables> {
        let state = NodeState { nodes: vec![Node { name: "n".into(), ..Node::default() }], ..NodeState::default() };
        Arc::new(Tables::compile(&state, &Runtime::offline(&state, NodeConfig::offline("n")), generation))
    }

    fn hub(capacity: usize) -> (Hub, Writer, Arc<AtomicBool>) {
        let (writer, reader) = ring(capacity);
        let everything = Arc::new(AtomicBool::new(false));
        (Hub::new(vec![reader], Instant::now(), everything.clone(), tables(1)), writer, everything)
    }

    fn write(writer: &mut Writer, generation: u32, time: u64, verdict: Verdict, state: CtState) {
        let trail = Trail { state, ..Trail::default() };
        writer.write(Record { time, generation, fate: Fate { in_port: PortId(0), decap: None, headers: None, verdict, trail } });
    }

    const DROP: Verdict = Verdict::Drop(DropReason::PolicyDenied);
    const KNOWN: CtState = CtState::Established(crate::conntrack::FlowDir::Original);

    fn reasons(flows: &[Arc<Flow>]) -> Vec<Option<DropReason>> {
        flows.iter().map(|flow| flow.reason).collect()
    }

    #[test]
    fn decisions_are_kept_in_order_of_time_and_packets_of_known_flows_are_not() {
        let (hub, mut writer, _) = hub(64);
        write(&mut writer, 1, 5, Verdict::Drop(DropReason::Multicast), CtState::Untracked);
        write(&mut writer, 1, 3, DROP, CtState::New);
        write(&mut writer, 1, 4, Verdict::Forward(PortId(1)), KNOWN);
        let ask = |first, last| reasons(&hub.ask(&Query { first, last, ..Query::default() }).0);
        assert_eq!(ask(None, None), [Some(DropReason::PolicyDenied), Some(DropReason::Multicast)]);
        assert_eq!(ask(Some(1), None), [Some(DropReason::PolicyDenied)]);
        assert_eq!(ask(None, Some(1)), [Some(DropReason::Multicast)]);
    }

    #[test]
    fn only_the_latest_decisions_are_kept() {
        let (hub, mut writer, _) = hub(2 * RECENT_MAX);
        (0..RECENT_MAX as u64 + 10).for_each(|n| write(&mut writer, 1, n, DROP, CtState::New));
        let kept = hub.ask(&Query::default()).0;
        assert_eq!(kept.len(), RECENT_MAX);
        assert_eq!(kept[RECENT_MAX - 1].time - kept[0].time, RECENT_MAX as u64 - 1);
    }

    #[test]
    fn what_was_decided_by_older_tables_keeps_their_names_when_they_go() {
        let (hub, mut writer, _) = hub(64);
        write(&mut writer, 1, 1, DROP, CtState::New);
        hub.expect(tables(2));
        write(&mut writer, 2, 2, DROP, CtState::New);
        hub.settle(2);
        hub.turn(&mut hub.lock());
        assert_eq!(hub.lock().namers.keys().copied().collect::<Vec<_>>(), [2]);
        let generations: Vec<u32> = hub.ask(&Query::default()).0.iter().map(|flow| flow.generation).collect();
        assert_eq!(generations, [1, 2]);
    }

    #[test]
    fn workers_note_every_packet_only_while_somebody_follows_who_wants_it() {
        let (hub, mut writer, everything) = hub(64);
        let follow = |filter| hub.ask(&Query { filter, follow: true, ..Query::default() }).1.unwrap();
        let dropped = crate::flows::Test::Verdict(vec![crate::flows::Verdict::Dropped]);
        let modest = follow(Filter(vec![crate::flows::Term { not: false, test: dropped }]));
        assert!(!everything.load(Ordering::Relaxed));
        let curious = follow(Filter::default());
        assert!(everything.load(Ordering::Relaxed));
        write(&mut writer, 1, 1, Verdict::Forward(PortId(1)), KNOWN);
        hub.turn(&mut hub.lock());
        assert_eq!((curious.events.len(), curious.take_lost()), (1, 0));
        drop(curious);
        write(&mut writer, 1, 2, DROP, CtState::New);
        hub.turn(&mut hub.lock());
        assert!(!everything.load(Ordering::Relaxed));
        assert_eq!((hub.lock().followers.len(), modest.events.len()), (1, 2));
    }

    #[test]
    fn a_follower_who_does_not_read_loses_events_and_each_is_counted() {
        const WRITTEN: usize = 3 * WAITING_MAX;
        let (hub, mut writer, _) = hub(1000);
        let following = hub.ask(&Query { follow: true, ..Query::default() }).1.unwrap();
        for part in 0..WRITTEN / 1500 {
            (0..1500).for_each(|n| write(&mut writer, 1, (part * 1500 + n) as u64, DROP, CtState::New));
            hub.turn(&mut hub.lock());
        }
        let (got, lost) = (following.events.try_iter().count(), following.take_lost());
        assert_eq!(got, WAITING_MAX);
        assert_eq!(got as u64 + lost, (WRITTEN / 1500 * 1500) as u64);
        assert_eq!(hub.lost(), [(WRITTEN / 1500 * 500) as u64], "those that found no room in the ring");
        assert_eq!(following.take_lost(), 0);
    }
}

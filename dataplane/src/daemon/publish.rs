//! Publishing: a state or a runtime becomes tables, the tables are handed to every worker, and flows that they make invalid go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Daemon, Inner};
use crate::conntrack::Ticks;
use crate::model::{MacAddr, NodeState};
use crate::pipeline::{is_orphaned_flow, is_stale_service_flow};
use crate::runtime::{PortKind, Runtime};
use crate::tables::Tables;
use crate::worker::Handle;

/// Entries of the connection table that are looked at between two quiescent points.
const SWEEP: u32 = 4096;
/// How long tables may take to be in force on every worker before the daemon says so in its log.
const IN_FORCE: Duration = Duration::from_secs(5);

impl Daemon {
    /// Puts a new state in force. Gives its generation and whether every worker has it.
    ///
    /// # Errors
    /// Each thing that is wrong with the state; nothing has changed then.
    pub fn apply(&self, state: NodeState, wait: Option<Duration>) -> Result<(u32, bool), Vec<String>> {
        let faults = self.faults(&state);
        if !faults.is_empty() {
            return Err(faults);
        }
        let mut inner = self.lock();
        let deadline = Instant::now() + wait.unwrap_or_default();
        let generation = self.put_in_force(&mut inner, Some(state));
        inner.applied = generation;
        let Inner { http, tables, .. } = &mut *inner;
        http.follow(&tables.state, &self.config.services.node_port_cidrs);
        if let Err(error) = self.look(&mut inner) {
            tracing::error!(%error, "cannot follow the node's network");
        }
        drop(inner);
        Ok((generation, self.in_force(generation, deadline)))
    }

    /// Removes flows that `tables` make invalid: of addresses that are another pod's now, or nobody's, and UDP flows that point
    /// where their service no longer does (E2.39).
    fn forget_flows(&self, inner: &mut Inner, tables: &Tables) {
        let mut next = Some(0);
        while let Some(from) = next {
            // What is found from here on keeps its number until this handle is quiescent again.
            self.connections.quiescent(&mut inner.sweeper);
            let mut stale = Vec::new();
            next = self.connections.dump(&mut inner.reader, from, SWEEP, self.now(), |flow| {
                let older = [&flow.original, &flow.reply].iter().any(|way| way.generation != tables.generation);
                if is_stale_service_flow(tables, &flow.original) || older && is_orphaned_flow(tables, &flow.original) {
                    stale.push(flow.entry);
                }
            });
            for entry in stale {
                self.connections.remove(&mut inner.sweeper, entry);
            }
        }
        self.reclaim(inner);
    }

    /// Gives back what was removed as soon as no worker can hold it; called now and then.
    pub(super) fn reclaim(&self, inner: &mut Inner) {
        self.connections.quiescent(&mut inner.sweeper);
        self.connections.park(&mut inner.sweeper);
    }

    /// The time that connections are dated by.
    pub(super) fn now(&self) -> Ticks {
        Ticks::from_nanos(self.started.elapsed().as_nanos() as u64)
    }
    fn faults(&self, state: &NodeState) -> Vec<String> {
        match state.nodes.get(state.this_node as usize) {
            None => vec![format!("the state names node number {} as its own and has {} nodes", state.this_node, state.nodes.len())],
            Some(node) if node.name != self.config.node => {
                vec![format!("the state is for node {}; this is node {}", node.name, self.config.node)]
            }
            Some(_) => Vec::new(),
        }
    }

    /// Compiles and hands over; gives the new generation. The old tables are freed here once no worker has them.
    pub(super) fn put_in_force(&self, inner: &mut Inner, state: Option<NodeState>) -> u32 {
        let before = inner.tables.clone();
        let generation = before.generation + 1;
        let state = state.map_or_else(|| before.state.clone(), Arc::new);
        let runtime = Arc::new(with_macs(&inner.runtime, &state));
        let tables =
            Arc::new(Tables::compile_next(state, runtime, generation, Some(&before), &|counter| self.connections.counted(counter)));
        self.flows.expect(tables.clone());
        self.workers.iter().for_each(|worker| worker.publish(tables.clone()));
        inner.tables = tables.clone();
        inner.published = inner.runtime.clone();
        if self.in_force(generation, Instant::now() + IN_FORCE) {
            self.flows.settle(generation);
            // What was decided by the old tables gets its names while these are here.
            self.reports_under(inner, &[&before]);
        } else {
            tracing::error!(generation, "a worker does not take new tables");
        }
        if !tables.reassigned.is_empty() || !Arc::ptr_eq(&tables.services, &before.services) {
            self.forget_flows(inner, &tables);
        }
        generation
    }

    fn in_force(&self, generation: u32, deadline: Instant) -> bool {
        loop {
            if self.workers.iter().all(|worker| worker.in_force() >= generation) {
                return true;
            }
            if Instant::now() >= deadline || self.workers.iter().any(Handle::has_ended) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The node as it is, with the MAC that a pod's interface has where nothing else is configured: that of its first address.
fn with_macs(runtime: &Runtime, state: &NodeState) -> Runtime {
    let first_address = |namespace: &str, name: &str| {
        let pod = state.endpoints.iter().find(|e| e.namespace == namespace && e.name == name);
        pod.and_then(|pod| pod.addresses.first()).copied()
    };
    let mut runtime = runtime.clone();
    for port in &mut runtime.ports {
        if let PortKind::Pod { namespace, name } = &port.kind {
            port.mac = port.mac.or_else(|| first_address(namespace, name).map(MacAddr::from_ip));
        }
    }
    runtime
}

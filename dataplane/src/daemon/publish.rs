//! Publishing: a state or a runtime becomes tables, the tables are handed to every worker, and flows that they make invalid go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Daemon, Inner};
use crate::conntrack::Ticks;
use crate::model::{FrontendKind, MacAddr, NodeConfig, NodeState, Service};
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
        let faults = faults(&self.config, &state);
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

/// What is wrong with a state for the node that `config` is of.
fn faults(config: &NodeConfig, state: &NodeState) -> Vec<String> {
    match state.nodes.get(state.this_node as usize) {
        None => return vec![format!("the state names node number {} as its own and has {} nodes", state.this_node, state.nodes.len())],
        Some(node) if node.name != config.node => {
            return vec![format!("the state is for node {}; this is node {}", node.name, config.node)];
        }
        Some(_) => {}
    }
    // E2.28: what comes to such a port could be the answer to what left by it.
    let (first, last) = config.masquerade.ports;
    let taken = |port: &u16| (first..=last).contains(port);
    let mut faults = Vec::new();
    for service in &state.services {
        let node_ports = service.frontends.iter().filter(|f| f.kind == FrontendKind::NodePort).map(|f| f.port);
        faults.extend(node_ports.chain(service.health_check_port).filter(taken).map(|port| {
            let Service { namespace, name, .. } = &**service;
            format!("Service {namespace}/{name}: node port {port} is among masquerade.ports [{first}, {last}] of this node's configuration")
        }));
    }
    faults.dedup();
    faults
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Frontend, Node};

    #[test]
    fn a_node_port_among_those_of_masquerading_is_refused_e2_28() {
        let mut config = NodeConfig::offline("a");
        config.masquerade.ports = (20_000, 29_999);
        let service = |kind, port, health_check_port| {
            let frontends = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|address| Frontend { address: address.into(), port, kind });
            Service { namespace: "shop".into(), name: "web".into(), frontends: frontends.into(), health_check_port, ..Service::default() }
        };
        let said = |service| {
            let nodes = vec![Node { name: "a".into(), ..Node::default() }];
            faults(&config, &NodeState { nodes, services: vec![Arc::new(service)], ..NodeState::default() })
        };
        for (port, refused) in [(19_999, false), (20_000, true), (29_999, true), (30_000, false)] {
            assert_eq!(said(service(FrontendKind::NodePort, port, None)).len(), usize::from(refused), "{port}");
            assert_eq!(said(service(FrontendKind::ClusterIp, port, None)), [""; 0], "another address");
            assert_eq!(said(service(FrontendKind::NodePort, 30_000, Some(port))).len(), usize::from(refused), "health check at {port}");
        }
        let expected = "Service shop/web: node port 20001 is among masquerade.ports [20000, 29999] of this node's configuration";
        assert_eq!(said(service(FrontendKind::NodePort, 20_001, None)), [expected]);
    }
}

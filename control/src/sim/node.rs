//! One node of a simulated cluster: what a daemon would hold, in the process.

use std::io;
use std::sync::Arc;

use weir_dataplane::conntrack::{ConnTable, TableConfig};
use weir_dataplane::counters::Counters;
use weir_dataplane::events::Observer;
use weir_dataplane::io::{Packet, PacketIo};
use weir_dataplane::model::{NodeConfig, NodeState};
use weir_dataplane::pipeline::{Cx, Local, process};
use weir_dataplane::runtime::Runtime;
use weir_dataplane::service::{self, Affinity};
use weir_dataplane::tables::Tables;

/// Clients that session affinity remembers at a time.
const AFFINITY_CLIENTS: u32 = 4096;

/// One simulated node.
pub struct SimNode {
    tables: Arc<Tables>,
    conns: ConnTable,
    affinity: Affinity,
    local: Local,
}

impl SimNode {
    /// Makes the node of `state`: port 0 is the uplink, port 1 the host, then one per local pod; no MAC is checked. Everything
    /// that is left to chance comes from `seed`.
    ///
    /// # Errors
    /// Where there is no memory for the tables.
    pub fn new(state: &NodeState, config: NodeConfig, seed: u64) -> io::Result<Self> {
        let runtime = Runtime::offline(state, config);
        let tables = Arc::new(Tables::compile(state, &runtime, 1));
        let max = runtime.config.tables.connections;
        // The hash's key is no secret here: nobody attacks a replay, and answers must repeat.
        let size = TableConfig { max, key: seed.into(), workers: 1, owners: runtime.ports.len() as u32, share: max };
        let conns = ConnTable::new(&size)?.with_counters(service::counters(runtime.config.services.scheduler));
        let worker = conns.worker().ok_or_else(|| io::Error::other("the connection table has no worker left"))?;
        let local = Local::new(worker, runtime.config.tables.fragments, seed);
        Ok(Self { tables, conns, affinity: Affinity::new(AFFINITY_CLIENTS, seed), local })
    }

    /// Takes a batch of the frames of `io` through the pipeline at `now`, nanoseconds.
    pub fn process<O: Observer>(&mut self, io: &impl PacketIo, now: u64, batch: &mut [Packet], observer: &mut O) {
        let mut cx =
            Cx { tables: &self.tables, conns: &self.conns, affinity: &self.affinity, arena: io.arena(), local: &mut self.local, now };
        process(&mut cx, batch, observer);
    }

    /// Puts another state of the same node in force; open connections stay.
    #[cfg(test)]
    pub(crate) fn publish(&mut self, state: &NodeState) {
        let runtime = Runtime::offline(state, self.tables.runtime.config.clone());
        let (state, generation) = (Arc::new(state.clone()), self.tables.generation + 1);
        self.tables = Arc::new(Tables::compile_shared(state, Arc::new(runtime), generation, Some(&self.tables)));
    }

    /// What it looks packets up in.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }
    /// The state that it was made of.
    pub fn state(&self) -> &NodeState {
        &self.tables.state
    }
    /// Its ports and surroundings.
    pub fn runtime(&self) -> &Runtime {
        &self.tables.runtime
    }
    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.local.counters
    }
}

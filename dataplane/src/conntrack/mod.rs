//! Connections: who talks to whom, and what was decided about it.
//!
//! One [`ConnTable`] per node, shared by all workers. The pipeline looks every packet up by its [`Tuple`], follows what the
//! flow's entry says, and inserts an entry for the first packet of a flow once everything about it is decided. This module
//! never decides where a packet goes and never looks into `exit`. Read `table` first.

mod arch;
mod epoch;
mod expiry;
mod flow;
mod fragments;
mod free;
mod hash;
mod index;
mod insert;
mod line;
mod lookup;
#[cfg(all(test, any(feature = "loom", feature = "shuttle")))]
mod model_tests;
pub mod sctp;
mod slab;
mod state;
mod sweep;
mod sync;
mod table;
pub mod tcp;
#[cfg(all(test, not(any(feature = "loom", feature = "shuttle"))))]
mod tests;
mod tuple;

pub(crate) use arch::{Baseline, Isa};
pub use expiry::timeout_ms;
pub use flow::*;
pub use fragments::Fragments;
pub(crate) use line::Key;
pub(crate) use lookup::{Direction, Lookup, Probe};
pub use state::*;
pub use table::*;
pub use tuple::*;

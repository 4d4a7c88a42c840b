//! Connections: who talks to whom, and what was decided about it.
//!
//! One [`ConnTable`] per node, shared by all workers. The pipeline looks every packet up by its [`Tuple`], follows what the
//! flow's entry says, and inserts an entry for the first packet of a flow once everything about it is decided. This module
//! never decides where a packet goes and never looks into `exit` and `cause`.

mod flow;
pub mod sctp;
mod state;
mod table;
pub mod tcp;
mod tuple;

pub use flow::*;
pub use state::*;
pub use table::*;
pub use tuple::*;

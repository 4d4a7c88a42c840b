//! The socket by which control and tools talk to the daemon.

pub mod client;
pub mod figures;
pub mod protocol;

//! Clusters simulated in the process: the real pipeline on made-up nodes, with a virtual clock and a seed.
//!
//! [`node`] is one node: its tables, its connections, its randomness. [`replay`] drives a capture through one node,
//! [`trace`] one packet through all of them, [`scenario`] a folder of files through one and compares. No root, no daemon,
//! no clock: the same snapshot, seed and packets give the same answer.

pub mod bytes;
pub mod fate;
pub mod flows;
pub mod hubble;
pub mod lines;
pub mod node;
pub mod place;
pub mod reach;
pub mod replay;
pub mod row;
pub mod scenario;
pub mod table;
pub mod trace;

//! What the benches share: a cluster, its flows and their packets, the same path on other tables, and a count of allocations.
//!
//! `benches/` holds the criterion benches, `peers/` the side-by-side runs with the kernel, `README.md` the results.

#![deny(unsafe_code)]

pub mod allocations;
mod check;
pub mod frames;
pub mod hostile;
pub mod map_path;
pub mod maps;
pub mod plan;
pub mod sizes;
pub mod traffic;
pub mod world;

//! What the benches share: a cluster, its traffic, the same path on another table, and a count of allocations.
//!
//! `benches/` holds the criterion benches, `peers/` the side-by-side runs with the kernel, `README.md` the results.

#![deny(unsafe_code)]

pub mod allocations;
pub mod map_path;
pub mod sizes;
pub mod traffic;
pub mod world;

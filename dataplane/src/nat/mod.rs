//! Translation of addresses and ports: what a decision becomes on the bytes.

mod rewrite;

pub use rewrite::*;

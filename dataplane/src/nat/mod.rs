//! Translation of addresses and ports: what a decision becomes on the bytes.

mod icmp;
mod rewrite;
mod snat;
#[cfg(test)]
mod tests;

pub use icmp::{quoted_tuple, translate_error};
pub(crate) use rewrite::edit_transport;
pub use rewrite::{Rewrite, RewriteFlags, decrement_ttl};
pub use snat::select_source;

//! Connections: who talks to whom, and what was decided about it.

mod tuple;

pub use tuple::*;

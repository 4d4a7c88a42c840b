//! What the daemon saw, as people read it.

pub mod text;

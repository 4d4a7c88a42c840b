//! What the daemon saw, as people read it.

pub mod record;
pub mod text;

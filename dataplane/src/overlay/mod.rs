//! The overlay: packets of pods inside packets between nodes.

pub mod vxlan;

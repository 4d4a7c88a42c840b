//! The overlay: packets of pods inside packets between nodes.

#[cfg(test)]
mod tests;
pub mod vxlan;

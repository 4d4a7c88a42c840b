//! Everything that is wrong with a snapshot, together.

use std::fmt;

use weir_dataplane::yaml::Fault;

/// All faults of all files, in the order of files and lines; prints one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(n, fault)| write!(f, "{}{fault}", if n > 0 { "\n" } else { "" }))
    }
}

impl std::error::Error for Faults {}

impl From<Vec<Fault>> for Faults {
    fn from(faults: Vec<Fault>) -> Self {
        Self(faults)
    }
}

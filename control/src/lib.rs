//! The `weir` command's parts: where objects come from, how they become a node's state, how it is shown.

#![forbid(unsafe_code)]

pub mod cli;
pub mod compile;
pub mod conformance;
pub mod diff;
pub mod lab;
pub mod lint;
pub mod matrix;
pub mod observe;
pub mod sim;
pub mod source;
pub mod why;

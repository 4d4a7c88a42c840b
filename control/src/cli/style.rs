//! Colour where a person looks, and nowhere else: not with `NO_COLOR`, not into a pipe.

use std::io::{self, IsTerminal};

/// What stands before an error message.
pub(super) fn error_prefix() -> &'static str {
    if wanted(io::stderr().is_terminal()) { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" }
}

/// Tells whether colour may be written to a stream that is, or is not, a terminal (https://no-color.org).
fn wanted(terminal: bool) -> bool {
    terminal
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

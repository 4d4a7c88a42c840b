//! The knobs under `/proc/sys/net`, of the calling thread's network namespace.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes one knob, e.g. `set("net/ipv4/conf/eth0/forwarding", "0")`. Slashes, not dots: interface names may have dots.
///
/// # Errors
/// [`Error::Refused`]; [`Error::is_absent`] where the kernel has no such knob.
pub fn set(knob: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(knob), value).map_err(|e| Error::io(format!("set {knob} to {value}"), e))
}

/// Writes several knobs; those that this kernel does not have are left out (IPv6 may be compiled out or disabled).
///
/// # Errors
/// [`Error::Refused`].
pub fn set_all(knobs: &[(&str, &str)]) -> Result<()> {
    for (knob, value) in knobs {
        match set(knob, value) {
            Err(e) if e.is_absent() => tracing::debug!(knob, "this kernel has no such knob"),
            other => other?,
        }
    }
    Ok(())
}

/// Reads one knob, without the line's end.
///
/// # Errors
/// [`Error::Refused`].
pub fn read(knob: &str) -> Result<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(knob)).map_err(|e| Error::io(format!("read {knob}"), e))?;
    Ok(text.trim_end().to_owned())
}

/// Sets, for links made from now on in this namespace, what a lab or a pod needs: IPv6 addresses that can be used at once
/// (no duplicate address detection, RFC 4862 §5.4), no router solicitations, no addresses from router advertisements.
///
/// # Errors
/// [`Error::Refused`].
pub fn quiet_ipv6() -> Result<()> {
    for scope in ["all", "default"] {
        for (knob, value) in [("accept_dad", "0"), ("dad_transmits", "0"), ("accept_ra", "0"), ("router_solicitations", "0")] {
            set_all(&[(&format!("net/ipv6/conf/{scope}/{knob}"), value)])?;
        }
    }
    Ok(())
}

/// Switches forwarding of both families on in this namespace.
///
/// # Errors
/// [`Error::Refused`].
pub fn enable_forwarding() -> Result<()> {
    set_all(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/default/forwarding", "1")])
}

//! Texts that the API server would check: names, labels, port names, addresses and address blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use weir_dataplane::model::Family;

/// Longest label value, and longest name part of a label key.
const LABEL_LEN_MAX: usize = 63;
/// Longest DNS name: object names, prefixes of label keys.
const DNS_LEN_MAX: usize = 253;
/// Longest port name (RFC 6335 §5.1).
const PORT_NAME_LEN_MAX: usize = 15;

/// Letters, digits, `-`, `_`, `.`; a letter or digit at both ends.
fn qualified(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= LABEL_LEN_MAX && text.bytes().all(inner) && ends(text.as_bytes().first()) && ends(text.as_bytes().last())
}

/// Labels of lower case letters, digits and `-`, separated by dots (RFC 1123).
fn dns(text: &str) -> bool {
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.bytes().all(inner)
    };
    text.len() <= DNS_LEN_MAX && text.split('.').all(label)
}

/// Checks an object's name.
pub(super) fn name(text: &str) -> Result<String, String> {
    if dns(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name: lower case letters, digits, - and . (at most {DNS_LEN_MAX})"))
}

/// Checks a name that is one DNS label: of a namespace, a Service, a Service's port.
pub(super) fn label_name(text: &str) -> Result<String, String> {
    if dns(text) && text.len() <= LABEL_LEN_MAX && !text.contains('.') {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no name: lower case letters, digits and - (at most {LABEL_LEN_MAX})"))
}

/// Checks a label's key: `name` or `prefix/name`.
pub(super) fn label_key(text: &str) -> Result<(), String> {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if qualified(name) && prefix.is_none_or(dns) {
        return Ok(());
    }
    Err(format!("{text:?} is no label key: [DNS name/] and at most {LABEL_LEN_MAX} of letters, digits, -, _ and ."))
}

/// Checks a label's value.
pub(super) fn label_value(text: &str) -> Result<String, String> {
    if text.is_empty() || qualified(text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no label value: at most {LABEL_LEN_MAX} of letters, digits, -, _ and ., a letter or digit at both ends"))
}

/// Checks the name of a container port or of a policy's port (RFC 6335 §5.1, lower case).
pub(super) fn port_name(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=PORT_NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(inner)
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no port name: at most {PORT_NAME_LEN_MAX} of lower case letters, digits and single -, at least one letter"))
}

/// Reads an address as Kubernetes does: leading zeros in IPv4 are decimal, as old API servers accepted them.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    let wrong = || format!("{text:?} is no IP address");
    let address = match text.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => IpAddr::V4(sloppy_v4(text).ok_or_else(wrong)?),
    };
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(format!("{text:?} is an IPv4 address in IPv6 form: write it as IPv4")),
        _ => Ok(address),
    }
}

fn sloppy_v4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut octets = [0; 4];
    for octet in &mut octets {
        *octet = decimal(parts.next()?, 255)? as u8;
    }
    parts.next().is_none().then(|| octets.into())
}

fn decimal(text: &str, max: u16) -> Option<u16> {
    let digits = text.trim_start_matches('0');
    let good = !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
    let value = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    (good && value <= max).then_some(value)
}

/// Reads an address that packets of others can carry: not unspecified, loopback, link-local or multicast.
pub(super) fn unicast(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    let (special, kind) = match address {
        _ if address.is_unspecified() => (true, "unspecified"),
        _ if address.is_loopback() => (true, "a loopback"),
        _ if address.is_multicast() => (true, "a multicast"),
        IpAddr::V4(v4) => (v4.is_link_local() || v4 == Ipv4Addr::BROADCAST, "a link-local or broadcast"),
        IpAddr::V6(v6) => (is_link_local(v6), "a link-local"),
    };
    if special { Err(format!("{text:?} is {kind} address, which cannot be meant here")) } else { Ok(address) }
}

/// Reads a family as `ipFamilies` names it.
pub(super) fn family(text: &str) -> Result<Family, String> {
    match text {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        _ => Err(format!("{text:?} is not one of IPv4, IPv6")),
    }
}

fn is_link_local(v6: Ipv6Addr) -> bool {
    v6.segments()[0] & 0xffc0 == 0xfe80
}

/// Reads an address block; host bits are cut off. White space around it is allowed, as in loadBalancerSourceRanges.
pub(super) fn block(text: &str) -> Result<IpNet, String> {
    let wrong = |why: &str| format!("{text:?} is no address block{why}");
    let Some((base, length)) = text.trim().split_once('/') else {
        return Err(wrong(": it has no prefix length, as in 10.0.0.0/8"));
    };
    let base = address(base).map_err(|_| wrong(""))?;
    let length = decimal(length, if base.is_ipv4() { 32 } else { 128 }).ok_or_else(|| wrong(": its prefix length is out of range"))?;
    IpNet::new(base, length as u8).map(|net| net.trunc()).map_err(|_| wrong(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal_as_old_api_servers_took_them() {
        assert_eq!(address("172.30.0.041"), Ok("172.30.0.41".parse().unwrap()));
        assert_eq!(block("203.0.113.000/025"), Ok("203.0.113.0/25".parse().unwrap()));
        assert_eq!(block(" 203.0.113.0/25"), Ok("203.0.113.0/25".parse().unwrap()));
        assert_eq!(block("10.1.2.3/8"), Ok("10.0.0.0/8".parse().unwrap()));
        for bad in ["256.0.0.1", "1.2.3", "1.2.3.4.5", "1.2.3.", "1.2.3.-4", "::ffff:10.0.0.1", "fd00:::1", ""] {
            assert!(address(bad).is_err(), "{bad}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "fd00::/129", "10.0.0.0/-1", "/8"] {
            assert!(block(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_and_port_names_have_the_api_servers_syntax() {
        for good in ["a", "app.kubernetes.io/name", "A_b.c-d", &"a".repeat(63)] {
            assert_eq!(label_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/k", "a/", "A/b", "a/b/c", "k=v", "-a", "a-", &"a".repeat(64)] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok() && label_value("a b").is_err() && label_value(&"a".repeat(64)).is_err());
        for good in ["web", "serve-80-tcp", "8a", "a2345678901234-"] {
            assert_eq!(port_name(good).is_ok(), !good.ends_with('-'), "{good}");
        }
        for bad in ["", "Web", "80", "a--b", "-a", "!@#$", "a234567890123456"] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn special_addresses_are_no_unicast() {
        for bad in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1"] {
            assert!(unicast(bad).is_err(), "{bad}");
        }
        assert!(unicast("10.0.0.1").is_ok() && unicast("fd00::1").is_ok());
    }
}

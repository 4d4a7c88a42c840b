//! discovery.k8s.io/v1 EndpointSlice.

use std::net::IpAddr;

use weir_dataplane::model::Family;

use crate::source::objects::{EndpointSlice, Meta, SliceEndpoint, SlicePort};
use crate::source::read::{At, twice};
use crate::source::syntax;

/// Label that names the Service of a slice (E2.8).
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label of slices of headless Services (E2.1).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Endpoints of a slice at most.
const ENDPOINTS_MAX: usize = 1000;
/// Addresses of an endpoint at most.
const ADDRESSES_MAX: usize = 100;
/// Ports of a slice at most.
const PORTS_MAX: usize = 20_000;
/// Zones, and nodes, that an endpoint is meant for at most.
const HINTS_MAX: usize = 8;

pub(super) fn slice(at: &At<'_>, meta: Meta) -> EndpointSlice {
    if at.str("addressType").is_none() {
        at.fault_of("addressType", "is required: IPv4, IPv6 or FQDN");
    }
    let family = at.word("addressType", &[("IPv4", Some(Family::V4)), ("IPv6", Some(Family::V6)), ("FQDN", None)]).flatten();
    let service = meta.labels.get(SERVICE_LABEL).filter(|s| !s.is_empty()).cloned();
    let headless = meta.labels.contains_key(HEADLESS_LABEL);
    let endpoints = family.and_then(|family| at.list("endpoints", |item| endpoint(&item, family)));
    at.count("endpoints", 0..=ENDPOINTS_MAX);
    at.count("ports", 0..=PORTS_MAX);
    let mut names = Vec::new();
    let ports = at.list("ports", |item| {
        let (name, protocol) = (item.is_map().then(|| item.str("name"))?.unwrap_or_default().to_owned(), item.protocol());
        if !name.is_empty()
            && let Err(message) = syntax::label_name(&name)
        {
            item.fault_of("name", message);
        }
        names.push(name.clone());
        // A port without a number is skipped (E2.8).
        Some(SlicePort { name, protocol, port: item.port("port", true)? })
    });
    if let Some(name) = twice(&names) {
        at.fault_of("ports", format!("the name {name:?} stands twice"));
    }
    EndpointSlice { meta, service, headless, family, endpoints: endpoints.unwrap_or_default(), ports: ports.unwrap_or_default() }
}

fn endpoint(item: &At<'_>, family: Family) -> Option<SliceEndpoint> {
    if !item.is_map() {
        return None;
    }
    let addresses = item.list("addresses", |address| address_of(&address, family));
    if addresses.as_ref().is_none_or(Vec::is_empty) && item.field("addresses").is_none_or(|a| a.node.list().is_empty()) {
        item.fault_of("addresses", "is required: at least one address");
    }
    let condition = |key: &str, default| item.map("conditions").and_then(|c| c.bool(key)).unwrap_or(default);
    item.count("addresses", 0..=ADDRESSES_MAX);
    let hints = |key: &str, valid: fn(&str) -> Result<String, String>| {
        let hints = item.map("hints")?;
        hints.count(key, 0..=HINTS_MAX);
        let name = |hint: At<'_>| hint.is_map().then(|| hint.str("name").and_then(|_| hint.field("name")?.parse(valid)))?;
        let names = hints.list(key, name)?;
        if let Some(name) = twice(&names) {
            hints.fault_of(key, format!("{name:?} stands twice"));
        }
        Some(names)
    };
    Some(SliceEndpoint {
        ready: condition("ready", true),
        serving: condition("serving", true),
        terminating: condition("terminating", false),
        node: item.name("nodeName"),
        hint_zones: hints("forZones", syntax::label_value).unwrap_or_default(),
        hint_nodes: hints("forNodes", syntax::name).unwrap_or_default(),
        address: addresses?.into_iter().next()?,
    })
}

fn address_of(at: &At<'_>, family: Family) -> Option<IpAddr> {
    let address = at.parse(syntax::unicast)?;
    if address.is_ipv4() == (family == Family::V4) {
        return Some(address);
    }
    let (is, of) = if address.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    at.fault(format!("{address} is an {is} address in a slice of addressType {of}"));
    None
}

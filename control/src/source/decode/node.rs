//! v1 Node.

use std::net::IpAddr;

use weir_dataplane::model::MacAddr;

use crate::source::objects::{Meta, Node};
use crate::source::read::At;
use crate::source::syntax;

/// Annotation in which flannel tells the VTEP's MAC.
const FLANNEL_BACKEND: &str = "flannel.alpha.coreos.com/backend-data";

/// Taint that the cluster autoscaler gives to a node that it is about to delete.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Internal,
    External,
    Name,
}
const KINDS: [(&str, Kind); 5] = [
    ("InternalIP", Kind::Internal),
    ("ExternalIP", Kind::External),
    ("Hostname", Kind::Name),
    ("InternalDNS", Kind::Name),
    ("ExternalDNS", Kind::Name),
];

pub(super) fn node(at: &At<'_>, meta: Meta) -> Node {
    let mut node = Node { meta, ..Node::default() };
    if let Some(spec) = at.map("spec") {
        let blocks = spec.list("podCIDRs", |item| item.parse(syntax::block)).unwrap_or_default();
        let single = spec.str("podCIDR").and_then(|_| spec.field("podCIDR")?.parse(syntax::block));
        if let (Some(single), Some(first)) = (single, blocks.first())
            && single != *first
        {
            spec.fault_of("podCIDR", format!("{single} is not the first of podCIDRs, {first}"));
        }
        if [true, false].iter().any(|v4| blocks.iter().filter(|block| block.addr().is_ipv4() == *v4).count() > 1) {
            spec.fault_of("podCIDRs", "at most one block of each family");
        }
        node.pod_cidrs = if blocks.is_empty() { single.into_iter().collect() } else { blocks };
    }
    if let Some(status) = at.map("status") {
        let listed: Vec<(Kind, IpAddr)> = status.list("addresses", address).unwrap_or_default();
        for kind in [Kind::Internal, Kind::External] {
            node.addresses.extend(listed.iter().filter(|(k, _)| *k == kind).map(|(_, address)| *address));
        }
    }
    node.vtep_mac = vtep_mac(at);
    node.leaving = is_leaving(at);
    node
}

/// As kube-proxy sees it (`pkg/proxy/healthcheck/proxy_health.go`, KEP-3836).
fn is_leaving(at: &At<'_>) -> bool {
    let deleted = at.field("metadata").is_some_and(|metadata| metadata.field("deletionTimestamp").is_some());
    let taints =
        at.map("spec").and_then(|spec| spec.list("taints", |taint| Some(taint.is_map() && taint.str("key") == Some(LEAVING_TAINT))));
    deleted || taints.is_some_and(|taints| taints.contains(&true))
}

fn address(item: At<'_>) -> Option<(Kind, IpAddr)> {
    let kind = item.is_map().then(|| item.word("type", &KINDS))??;
    if kind == Kind::Name {
        return None;
    }
    item.field("address")?.parse(syntax::unicast).map(|address| (kind, address))
}

fn vtep_mac(at: &At<'_>) -> Option<MacAddr> {
    let metadata = at.field("metadata")?;
    let annotations = metadata.field("annotations")?;
    let data = annotations.field(FLANNEL_BACKEND)?;
    let json: serde_json::Value = serde_json::from_str(data.text()?).ok()?;
    let mac = json.get("VtepMAC")?.as_str()?.parse();
    mac.map_err(|error| data.fault(format!("VtepMAC: {error}"))).ok()
}

//! Trees into objects: what the API server would check and default (E0), kind by kind.

mod cluster;
mod node;
mod pod;
mod policy;
mod service;
mod slice;

use std::sync::Arc;

use weir_dataplane::model::PolicyKind;
use weir_dataplane::yaml::{Fault, Node, Source, Value};

use super::fields;
use super::objects::{Meta, NAMESPACE_NAME_LABEL, Namespace, Object, Origin};
use super::read::{At, Reading};
use super::syntax;

pub(crate) use service::protocol_name;

/// What a tree turned out to be.
#[derive(Debug)]
pub enum Decoded {
    /// An object that matters here, with warnings ready to print.
    Object(Box<Object>, Vec<String>),
    /// An object of a kind that is no concern: `apiVersion kind`.
    Foreign(String),
}

/// Kinds whose names are one DNS label; those of the others may have dots.
const LABEL_NAMED: [&str; 2] = ["Namespace", "Service"];

/// The kinds that are read: kind, apiVersion, namespaced.
const KINDS: [(&str, &str, bool); 9] = [
    ("Node", "v1", false),
    ("Namespace", "v1", false),
    ("Pod", "v1", true),
    ("Service", "v1", true),
    ("EndpointSlice", "discovery.k8s.io/v1", true),
    ("NetworkPolicy", "networking.k8s.io/v1", true),
    ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2", false),
    ("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1", false),
    ("BaselineAdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1", false),
];

/// Groups whose objects under a kind of ours mean ours, in whatever version.
const GROUPS: [&str; 5] = ["", "discovery.k8s.io", "networking.k8s.io", "extensions", "policy.networking.k8s.io"];

/// Checks one object and gives it its typed, defaulted form.
///
/// # Errors
/// Every fault of this object: unknown and unsupported fields, wrong types, invalid values.
pub fn decode(source: &Source, node: &Node<'_>) -> Result<Decoded, Vec<Fault>> {
    decode_as(source, node, None)
}

/// Like [`decode`], for an item of a typed list, which names neither kind nor version itself.
pub(super) fn decode_as(source: &Source, node: &Node<'_>, implied: Option<(&str, &str)>) -> Result<Decoded, Vec<Fault>> {
    let text = |key| node.field(key).and_then(Node::str);
    let (version, kind) = match (text("apiVersion").or(implied.map(|i| i.0)), text("kind").or(implied.map(|i| i.1))) {
        (Some(version), Some(kind)) => (version, kind),
        (version, _) => {
            let missing = if version.is_none() { "apiVersion" } else { "kind" };
            return Err(vec![source.fault(node.at, missing, "is missing: this is no Kubernetes object")]);
        }
    };
    let Some((_, expected, namespaced)) = KINDS.into_iter().find(|(k, ..)| *k == kind) else {
        return Ok(Decoded::Foreign(format!("{version} {kind}")));
    };
    let reading = Reading::new(source, label(kind, node, namespaced));
    let at = At::root(&reading, node);
    if version != expected {
        let group = version.split_once('/').map_or("", |(group, _)| group);
        if !GROUPS.contains(&group) {
            return Ok(Decoded::Foreign(format!("{version} {kind}")));
        }
        at.fault_of("apiVersion", format!("{version:?} of {kind} is not supported; {expected} is"));
        return Err(reading.faults.into_inner());
    }
    fields::check(&reading, node, kind);
    let meta = meta(&at, kind, namespaced);
    let object = match kind {
        "Node" => Object::Node(node::node(&at, meta)),
        "Namespace" => Object::Namespace(namespace(meta)),
        "Pod" => Object::Pod(pod::pod(&at, meta)),
        "Service" => Object::Service(service::service(&at, meta)),
        "EndpointSlice" => Object::EndpointSlice(slice::slice(&at, meta)),
        "NetworkPolicy" => Object::NetworkPolicy(policy::policy(&at, meta)),
        "ClusterNetworkPolicy" => Object::ClusterPolicy(cluster::policy(&at, meta, PolicyKind::ClusterNetworkPolicy)),
        "AdminNetworkPolicy" => Object::ClusterPolicy(cluster::policy(&at, meta, PolicyKind::AdminNetworkPolicy)),
        _ => Object::ClusterPolicy(cluster::policy(&at, meta, PolicyKind::BaselineAdminNetworkPolicy)),
    };
    let faults = reading.faults.into_inner();
    if faults.is_empty() { Ok(Decoded::Object(Box::new(object), reading.warnings.into_inner())) } else { Err(faults) }
}

/// `kind namespace/name` for messages, from whatever there is.
fn label(kind: &str, node: &Node<'_>, namespaced: bool) -> String {
    let meta = node.field("metadata");
    let text = |key| meta.and_then(|m| m.field(key)).and_then(Node::str);
    let name = text("name").unwrap_or("(no name)");
    if namespaced { format!("{kind} {}/{name}", text("namespace").unwrap_or("default")) } else { format!("{kind} {name}") }
}

fn meta(at: &At<'_>, kind: &str, namespaced: bool) -> Meta {
    let source = at.source();
    let (line, column) = source.position(at.node.at);
    let mut meta = Meta { origin: Origin { file: Arc::clone(source.file()), line, column }, ..Meta::default() };
    let Some(metadata) = at.map("metadata") else {
        if at.field("metadata").is_none() {
            at.fault_of("metadata", "is required");
        }
        return meta;
    };
    match metadata.field("name") {
        Some(name) if LABEL_NAMED.contains(&kind) => meta.name = name.parse(syntax::label_name).unwrap_or_default(),
        Some(name) => meta.name = name.parse(syntax::name).unwrap_or_default(),
        None => metadata.fault_of("name", "is required"),
    }
    if namespaced {
        let namespace = metadata.str("namespace").map(syntax::label_name).transpose();
        let namespace = namespace.unwrap_or_else(|message| {
            metadata.fault_of("namespace", message);
            None
        });
        meta.namespace = namespace.unwrap_or_else(|| "default".into());
    }
    meta.labels = metadata.labels("labels");
    meta
}

/// A namespace with the label that the API server gives it (E0.5).
pub(super) fn namespace(mut meta: Meta) -> Namespace {
    meta.labels.insert(NAMESPACE_NAME_LABEL.into(), meta.name.clone());
    Namespace { meta }
}

/// A policy's port: a number of 1 to 65535, or a container port's name.
enum PolicyPort {
    Number(u16),
    Name(String),
}

/// This node as a policy's port.
fn policy_port(at: &At<'_>) -> Option<PolicyPort> {
    match at.node.value {
        Value::Int(_) => at.number(1..=65535).map(|n| PolicyPort::Number(n as u16)),
        _ => at.parse(syntax::port_name).map(PolicyPort::Name),
    }
}

//! Places as a person names them: `namespace/pod`, `svc/namespace/name`, `node/name`, or an address.

use std::net::IpAddr;

use weir_dataplane::model::NodeState;

use crate::source::syntax;

/// One end of a made-up connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `namespace/pod`.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// `svc/namespace/name`.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// `node/name`.
    Node(String),
    /// An address.
    Address(IpAddr),
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(format!("{text:?} has an empty part; {FORMS}"));
        }
        match parts[..] {
            ["svc" | "service", namespace, name] => Ok(Self::Service { namespace: namespace.into(), name: name.into() }),
            ["node", name] => Ok(Self::Node(name.into())),
            ["pod", namespace, name] | [namespace, name] => Ok(Self::Pod { namespace: namespace.into(), name: name.into() }),
            [address] => match syntax::address(address.trim_start_matches('[').trim_end_matches(']')) {
                Ok(address) => Ok(Self::Address(address)),
                Err(why) => Err(format!("{why}; {FORMS}")),
            },
            _ => Err(format!("{text:?} is no place; {FORMS}")),
        }
    }
}

const FORMS: &str = "a place is namespace/pod, svc/namespace/name, node/name or an address";

impl Place {
    /// The addresses of this place in the cluster of `state`, in its own order.
    ///
    /// # Errors
    /// Where the snapshot has no such place, or it has no address.
    pub fn addresses(&self, state: &NodeState) -> Result<Vec<IpAddr>, String> {
        let addresses = match self {
            Self::Address(address) => vec![*address],
            Self::Pod { namespace, name } => {
                let pod = state.endpoints.iter().find(|e| e.namespace == *namespace && e.name == *name);
                pod.ok_or_else(|| format!("the snapshot has no live pod {namespace}/{name} with an address"))?.addresses.clone()
            }
            Self::Node(name) => {
                let node = state.nodes.iter().find(|n| n.name == *name);
                node.ok_or_else(|| format!("the snapshot has no Node {name}"))?.addresses.clone()
            }
            Self::Service { namespace, name } => {
                let ports: Vec<_> = state.services.iter().filter(|s| s.namespace == *namespace && s.name == *name).collect();
                if ports.is_empty() {
                    return Err(format!("the snapshot has no Service {namespace}/{name} with a virtual address"));
                }
                let mut addresses = Vec::new();
                // ClusterIPs first: frontends sort by address, and a caller without a family takes the first one.
                let mut frontends: Vec<_> = ports.iter().flat_map(|s| &s.frontends).collect();
                frontends.sort_by_key(|f| (f.kind, !f.address.is_ipv4()));
                for frontend in frontends {
                    if !addresses.contains(&frontend.address) {
                        addresses.push(frontend.address);
                    }
                }
                addresses
            }
        };
        if addresses.is_empty() { Err(format!("{self} has no address")) } else { Ok(addresses) }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Service { namespace, name } => write!(f, "svc/{namespace}/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_four_forms_and_everything_else_is_refused() {
        for text in ["shop/web-0", "svc/shop/web", "node/node-a", "10.0.0.1", "fd00::1"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("[fd00::1]".parse::<Place>().unwrap().to_string(), "fd00::1");
        for text in ["", "web", "shop/", "a/b/c", "svc/shop/", "1.2.3"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}

//! `node.yaml`: what an operator decides about one node (`kind: NodeConfig`).

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::MacAddr;

/// The whole file. Unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeConfig {
    /// `weir.dev/v1alpha1`.
    pub api_version: String,
    /// `NodeConfig`.
    pub kind: String,
    /// Which Node of the snapshot this is.
    pub node: String,
    /// Where control talks to the daemon.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Threads that move packets.
    #[serde(default)]
    pub workers: WorkersConfig,
    /// The node's NIC; absent only in offline use.
    #[serde(default)]
    pub uplink: Option<UplinkConfig>,
    /// How pods of other nodes are reached.
    #[serde(default)]
    pub overlay: OverlayConfig,
    /// The pair by which the node's own stack reaches pods and services.
    #[serde(default)]
    pub host: HostConfig,
    /// Sizes, fixed at start.
    #[serde(default)]
    pub tables: TablesConfig,
    /// Choices that NetworkPolicy leaves open.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// Choices that Services leave open.
    #[serde(default)]
    pub services: ServicesConfig,
    /// Source translation towards the outside.
    #[serde(default)]
    pub masquerade: MasqueradeConfig,
    /// Connection tracking choices.
    #[serde(default)]
    pub conntrack: ConntrackConfig,
    /// Address ranges, where the snapshot does not tell.
    #[serde(default)]
    pub cluster: ClusterConfig,
    /// Where metrics are served.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Attached pods.
    #[serde(default)]
    pub pods: Vec<PodPort>,
}

impl NodeConfig {
    /// A configuration with every default, for offline use on the node called `node`.
    pub fn offline(node: &str) -> Self {
        Self {
            api_version: "weir.dev/v1alpha1".into(),
            kind: "NodeConfig".into(),
            node: node.into(),
            socket: default_socket(),
            workers: WorkersConfig::default(),
            uplink: None,
            overlay: OverlayConfig::default(),
            host: HostConfig::default(),
            tables: TablesConfig::default(),
            policy: PolicyConfig::default(),
            services: ServicesConfig::default(),
            masquerade: MasqueradeConfig::default(),
            conntrack: ConntrackConfig::default(),
            cluster: ClusterConfig::default(),
            metrics: MetricsConfig::default(),
            pods: Vec::new(),
        }
    }
}

fn default_socket() -> PathBuf {
    "/run/weir/dataplane.sock".into()
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }
    };
}

section! {
    /// `workers`: one thread per core, pinned.
    WorkersConfig {
        /// How many.
        count: u16 = 1,
        /// Which cores; empty = the last `count` ones.
        cores: Vec<u16> = Vec::new(),
        /// What a worker without work does.
        idle: Idle = Idle::Adaptive,
    }
}
/// What a worker without work does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Looks for about 50 µs, then sleeps until a frame arrives.
    Adaptive,
    /// Never sleeps.
    Poll,
    /// Sleeps at once.
    Wait,
}

/// `uplink`: the node's NIC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UplinkConfig {
    /// Its name.
    pub interface: String,
    /// How to attach.
    #[serde(default)]
    pub mode: XdpMode,
}
/// How an XDP program and AF_XDP sockets attach to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// The best that works: zero copy, copy, generic.
    #[default]
    Auto,
    /// Driver mode, zero copy, or fail.
    Zerocopy,
    /// Driver mode with a copy, or fail.
    Copy,
    /// Generic mode.
    Skb,
}

section! {
    /// `overlay`: how pods of other nodes are reached.
    OverlayConfig {
        /// Encapsulated or routed.
        mode: OverlayMode = OverlayMode::Vxlan,
        /// VXLAN network identifier, 24 bits (RFC 7348 §5).
        vni: u32 = 1,
        /// UDP destination port of the overlay.
        port: u16 = 8472,
    }
}
/// Encapsulated or routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayMode {
    /// RFC 7348, as Flannel does it.
    Vxlan,
    /// By the kernel's routes.
    Native,
}

section! {
    /// `host`: the veth pair of the node's own stack.
    HostConfig {
        /// Name of the end that the node uses.
        interface: String = "weir0".into(),
    }
}
section! {
    /// `tables`: sizes fixed at start.
    TablesConfig {
        /// Connections tracked at most.
        connections: u32 = 1_048_576,
        /// Datagrams under reassembly of ports at most.
        fragments: u32 = 4096,
    }
}
section! {
    /// `policy`: what NetworkPolicy leaves open.
    PolicyConfig {
        /// How a denial answers (E1.41).
        deny_action: DenyAction = DenyAction::Drop,
        /// What happens to open connections when policies change (E1.37).
        on_change: OnChange = OnChange::Keep,
        /// Egress from a pod to its own node (E1.32).
        own_node_egress: OwnNodeEgress = OwnNodeEgress::Allow,
    }
}
/// How a denial answers (E1.41).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DenyAction {
    /// Silence.
    Drop,
    /// TCP RST, else ICMP administratively prohibited.
    Reject,
}
/// What happens to open connections when policies change (E1.37).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// An allowed flow lives on.
    Keep,
    /// A flow that is no longer allowed is dropped at its next packet.
    Cut,
    /// Likewise, but TCP gets a RST to both ends.
    Drain,
}
/// Egress from a pod to its own node (E1.32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnNodeEgress {
    /// Always allowed.
    Allow,
    /// As policies say.
    Enforce,
}

section! {
    /// `services`: what Services leave open.
    ServicesConfig {
        /// How a backend is chosen.
        scheduler: Scheduler = Scheduler::Random,
        /// Echo requests to a ClusterIP are answered while an endpoint is usable (E2.6).
        answer_ping: bool = false,
        /// ClusterIPs are served to sources outside the cluster (E2.7).
        #[serde(rename = "externalClusterIP")]
        external_cluster_ip: bool = false,
        /// On which of the node's addresses NodePorts are served; empty = the primary one of each family (E2.30).
        #[serde(rename = "nodePortCIDRs")]
        node_port_cidrs: Vec<IpNet> = Vec::new(),
    }
}
/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// Uniformly at random (E2.15).
    Random,
    /// Maglev consistent hashing of the tuple.
    Maglev,
    /// By the source address.
    SourceHash,
    /// The one with the fewest connections of this node.
    LeastConnections,
}

section! {
    /// `masquerade`: source translation.
    MasqueradeConfig {
        /// Also for service traffic inside the cluster (E2.27).
        all: bool = false,
        /// First and last port that translation may use; the kernel's own ephemeral ports must lie outside.
        ports: (u16, u16) = (61000, 65535),
        /// Destinations towards which pods keep their own address.
        #[serde(rename = "exceptCIDRs")]
        except_cidrs: Vec<IpNet> = Vec::new(),
    }
}
section! {
    /// `conntrack`: connection tracking choices.
    ConntrackConfig {
        /// What happens to packets that belong to no connection and cannot open one (E2.44).
        invalid: OnInvalid = OnInvalid::Drop,
    }
}
/// What happens to packets that connection tracking calls invalid (E2.44).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// Counted and dropped.
    Drop,
    /// Forwarded untranslated.
    Forward,
}
section! {
    /// `cluster`: address ranges.
    ClusterConfig {
        /// Where pods live; empty = the Nodes' podCIDRs.
        #[serde(rename = "podCIDRs")]
        pod_cidrs: Vec<IpNet> = Vec::new(),
        /// Where ClusterIPs live; empty = unknown.
        #[serde(rename = "serviceCIDRs")]
        service_cidrs: Vec<IpNet> = Vec::new(),
    }
}
section! {
    /// `metrics`: where they are served.
    MetricsConfig {
        /// Address and port; empty = nowhere.
        listen: String = "127.0.0.1:9964".into(),
    }
}

/// One attached pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodPort {
    /// `namespace/name`.
    pub pod: String,
    /// The host end of its veth pair.
    pub interface: String,
    /// The MAC of the pod's end; default [`MacAddr::from_ip`] of the pod's first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
}

/// The gateway that pods route to: link-local, so that it never collides with a pod's address.
pub const GATEWAY_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 1, 1));
/// The same for IPv6.
pub const GATEWAY_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

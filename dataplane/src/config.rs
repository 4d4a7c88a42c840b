//! Reading `node.yaml` and checking what its types alone do not.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::model::NodeConfig;
use crate::yaml;

/// Why a NodeConfig is not usable: each fault with file, line and field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(String, #[source] std::io::Error),
    /// What it says is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<yaml::Fault>),
}

/// Where an API server allocates NodePorts unless told otherwise (E2.30). Those that a state names are looked at when it is applied.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Most fragmented datagrams at a time: 64 MB a worker.
const FRAGMENTS_MAX: u32 = 1 << 20;

/// Reads the file at `path`.
///
/// # Errors
/// As [`ConfigError`] says.
pub fn load(path: &Path) -> Result<NodeConfig, ConfigError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| ConfigError::Read(name.clone(), error))?;
    let source = yaml::Source::new(&name, bytes).map_err(|fault| ConfigError::Faults(vec![fault]))?;
    parse(&source)
}

/// Reads a text.
///
/// # Errors
/// [`ConfigError::Faults`].
pub fn parse(source: &yaml::Source) -> Result<NodeConfig, ConfigError> {
    let config: NodeConfig = yaml::from_source(source).map_err(ConfigError::Faults)?;
    let faults: Vec<_> = faults(&config).into_iter().map(|(path, message)| source.fault(0, path, message)).collect();
    if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
}

/// What is wrong with a configuration: field and why.
fn faults(config: &NodeConfig) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    let mut expect = |holds: bool, path, message: String| {
        if !holds {
            faults.push((path, message));
        }
    };
    expect(config.api_version == "weir.dev/v1alpha1", "apiVersion", format!("is {:?}; known is \"weir.dev/v1alpha1\"", config.api_version));
    expect(config.kind == "NodeConfig", "kind", format!("is {:?}; must be \"NodeConfig\"", config.kind));
    expect(!config.node.is_empty(), "node", "must name a Node".into());
    expect(config.overlay.vni < 1 << 24, "overlay.vni", format!("{} does not fit 24 bits (RFC 7348 §5)", config.overlay.vni));
    expect(config.overlay.port != 0, "overlay.port", "must not be 0".into());
    let (first, last) = config.masquerade.ports;
    expect(0 < first && first <= last, "masquerade.ports", format!("[{first}, {last}] is no range of ports"));
    expect(
        !(first..=last).contains(&config.overlay.port),
        "masquerade.ports",
        format!("[{first}, {last}] contains the overlay's port {}", config.overlay.port),
    );
    expect(
        last < *NODE_PORTS.start() || *NODE_PORTS.end() < first,
        "masquerade.ports",
        format!("[{first}, {last}] overlaps the range of NodePorts, {} to {} (E2.28)", NODE_PORTS.start(), NODE_PORTS.end()),
    );
    let workers = &config.workers;
    let named = workers.cores.len();
    expect(workers.count > 0, "workers.count", "must be at least 1".into());
    expect(
        named == 0 || named == usize::from(workers.count),
        "workers.cores",
        format!("names {named} cores for {} workers", workers.count),
    );
    // The pair's other end is called like this one with a letter more; names have at most 15 bytes (IFNAMSIZ).
    let name = &config.host.interface;
    expect((1..15).contains(&name.len()), "host.interface", format!("{name:?} must have 1 to 14 bytes"));
    let listen = &config.metrics.listen;
    expect(
        listen.is_empty() || listen.parse::<std::net::SocketAddr>().is_ok(),
        "metrics.listen",
        format!("{listen:?} is no address and port, as 127.0.0.1:9964; \"\" for none"),
    );
    expect(config.tables.connections > 0, "tables.connections", "must be at least 1".into());
    let fragments = config.tables.fragments;
    expect(fragments <= FRAGMENTS_MAX, "tables.fragments", format!("{fragments} is more than {FRAGMENTS_MAX}, 64 MB a worker"));
    for (index, port) in config.pods.iter().enumerate() {
        let twice = config.pods[..index].iter().any(|p| p.pod == port.pod || p.interface == port.interface);
        expect(!twice, "pods", format!("{} behind {}: pod or interface is named twice", port.pod, port.interface));
        expect(port.pod.contains('/'), "pods", format!("{:?} names no pod; namespace/name does", port.pod));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NodeConfig, String> {
        let source = yaml::Source::new("node.yaml", text.as_bytes().to_vec()).unwrap();
        parse(&source).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_of_the_contract_is_read_and_defaults_fill_the_rest() {
        let full = read(
            r#"
apiVersion: weir.dev/v1alpha1
kind: NodeConfig
node: node-a
socket: /run/weir/dataplane.sock
workers: {count: 1, cores: [1], idle: adaptive}
uplink: {interface: eth1, mode: auto}
overlay: {mode: vxlan, vni: 1, port: 8472}
host: {interface: weir0}
tables: {connections: 1048576, fragments: 4096}
policy: {denyAction: drop, onChange: keep, ownNodeEgress: allow}
services: {scheduler: random, answerPing: false, externalClusterIP: false, nodePortCIDRs: []}
masquerade: {all: false, ports: [61000, 65535], exceptCIDRs: []}
cluster: {podCIDRs: [], serviceCIDRs: []}
metrics: {listen: "127.0.0.1:9964"}
pods:
- {pod: shop/web-0, interface: veth1234}
"#,
        )
        .unwrap();
        let short = read("{apiVersion: weir.dev/v1alpha1, kind: NodeConfig, node: node-a}").unwrap();
        let stripped = NodeConfig { pods: vec![], uplink: None, workers: short.workers.clone(), ..full };
        assert_eq!(stripped, short);
        assert_eq!(short, NodeConfig::offline("node-a"));
    }

    #[test]
    fn unknown_fields_and_impossible_values_are_named() {
        let head = "apiVersion: weir.dev/v1alpha1\nkind: NodeConfig\nnode: a\n";
        for (text, expected) in [
            ("mtu: 9000", "mtu"),
            ("overlay: {vni: 16777216}", "overlay.vni"),
            ("masquerade: {ports: [9, 3]}", "masquerade.ports"),
            ("masquerade: {ports: [8000, 9000]}", "8472"),
            ("masquerade: {ports: [20000, 30000]}", "NodePorts"),
            ("masquerade: {ports: [32767, 40000]}", "NodePorts"),
            ("masquerade: {ports: [20000, 40000]}", "NodePorts"),
            ("workers: {count: 2, cores: [1]}", "workers.cores"),
            ("tables: {fragments: 4294967295}", "tables.fragments"),
            ("workers: {idle: lazy}", "lazy"),
            ("host: {interface: abcdefghijklmno}", "host.interface"),
            ("metrics: {listen: localhost}", "metrics.listen"),
            ("pods: [{pod: web, interface: v0}]", "names no pod"),
            ("pods: [{pod: a/b, interface: v0}, {pod: a/c, interface: v0}]", "twice"),
        ] {
            let error = read(&format!("{head}{text}\n")).unwrap_err();
            assert!(error.contains(expected) && error.starts_with("node.yaml:"), "{text}: {error}");
        }
        for ports in ["[29000, 29999]", "[32768, 40000]"] {
            assert_eq!(read(&format!("{head}masquerade: {{ports: {ports}}}\n")).err(), None, "beside the range of NodePorts");
        }
    }
}

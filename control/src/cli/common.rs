//! Flags and output forms that several subcommands share.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Serialize;
use weir_dataplane::admin::client::{Client, ClientError};
use weir_dataplane::config::{self, ConfigError};
use weir_dataplane::model::{NodeConfig, NodeState, proto};
use weir_dataplane::verdict::DropReason;

use super::{Answer, Refused};
use crate::compile;
use crate::sim::replay::Hint;
use crate::source::{self, Faults, objects::Snapshot};

/// Which snapshot.
#[derive(Debug, clap::Args)]
pub(super) struct SnapshotArgs {
    /// Snapshot: a file, a folder or - (stdin); YAML or JSON, also gzipped; may be given several times
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    pub(super) paths: Vec<PathBuf>,
}

impl SnapshotArgs {
    /// Loads the snapshot. Warnings go to stderr; all faults become one refusal.
    pub(super) fn load(&self) -> anyhow::Result<Snapshot> {
        load_paths(&self.paths)
    }
}

/// Loads a snapshot. Warnings go to stderr; all faults become one refusal.
pub(super) fn load_paths(paths: &[PathBuf]) -> anyhow::Result<Snapshot> {
    for path in paths.iter().filter(|path| path.as_os_str() != "-") {
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let snapshot = source::load(paths).map_err(refused)?;
    for warning in &snapshot.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(snapshot)
}

/// All faults of a snapshot as one refusal.
pub(super) fn refused(faults: Faults) -> Refused {
    let count = faults.0.len();
    Refused(format!("the snapshot is not valid ({count} {}):\n{faults}", if count == 1 { "fault" } else { "faults" }))
}

/// Which node of the snapshot.
#[derive(Debug, clap::Args)]
pub(super) struct NodeArgs {
    /// The Node whose dataplane is meant [default: the host's own name, else the only Node]
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(super) node: Option<String>,
    /// The node's configuration (node.yaml); without it every choice is the default one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A snapshot and which node of it.
#[derive(Debug, clap::Args)]
pub(super) struct ClusterArgs {
    #[command(flatten)]
    pub(super) snapshot: SnapshotArgs,
    #[command(flatten)]
    pub(super) node: NodeArgs,
}

impl ClusterArgs {
    /// Loads the snapshot and finds the node.
    pub(super) fn load(&self) -> anyhow::Result<(Snapshot, NodeConfig)> {
        let snapshot = self.snapshot.load()?;
        let config = self.node.resolve(&snapshot)?;
        Ok((snapshot, config))
    }

    /// As [`load`](Self::load), but as [`NodeArgs::resolve_or_first`] finds the node.
    pub(super) fn load_or_first(&self) -> anyhow::Result<(Snapshot, NodeConfig)> {
        let snapshot = self.snapshot.load()?;
        let config = self.node.resolve_or_first(&snapshot)?;
        Ok((snapshot, config))
    }
}

impl NodeArgs {
    /// As [`resolve`](Self::resolve), but where nothing tells one of several nodes, the first one will do: for questions that
    /// are about the whole cluster.
    pub(super) fn resolve_or_first(&self, snapshot: &Snapshot) -> anyhow::Result<NodeConfig> {
        self.find(snapshot, true)
    }

    /// Finds the node and its configuration.
    pub(super) fn resolve(&self, snapshot: &Snapshot) -> anyhow::Result<NodeConfig> {
        self.find(snapshot, false)
    }

    fn find(&self, snapshot: &Snapshot, any: bool) -> anyhow::Result<NodeConfig> {
        let mut config = match &self.config {
            Some(path) => Some(config::load(path).map_err(|error| match error {
                ConfigError::Faults(_) => anyhow::Error::from(Refused(error.to_string())),
                ConfigError::Read(..) => error.into(),
            })?),
            None => None,
        };
        let names: Vec<&str> = snapshot.nodes.iter().map(|n| n.meta.name.as_str()).collect();
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
        let asked = self.node.clone().or_else(|| config.as_ref().map(|c| c.node.clone()));
        let node = match (asked, &names[..]) {
            (Some(node), _) if names.contains(&node.as_str()) => node,
            (Some(node), []) => bail!("node {node:?} is not in the snapshot, which has no Node at all"),
            (Some(node), _) => bail!("node {node:?} is not in the snapshot; it has: {}", names.join(", ")),
            (None, []) => bail!("the snapshot has no Node\n  try: kubectl get nodes -o yaml, and add it with -f"),
            (None, _) => match host().filter(|host| names.contains(&host.as_str())) {
                Some(host) => host,
                None if any || names.len() == 1 => names[0].to_owned(),
                None => bail!("which node? the snapshot has: {}\n  try: --node {}", names.join(", "), names[0]),
            },
        };
        let mut config = config.take().unwrap_or_else(|| NodeConfig::offline(&node));
        config.node = node;
        Ok(config)
    }
}

/// How a capture is replayed; `--pcap` stands beside it, which only `weir replay` cannot do without.
#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    /// Frames of the capture's interface IFACE (* = any) enter by PORT: uplink, host or namespace/pod. Without a hint a frame
    /// enters by the port of the local pod that owns its source address, else by the uplink
    #[arg(long, value_name = "IFACE=PORT", requires = "pcap")]
    pub(super) port_of: Vec<Hint>,
    /// Seed of what is left to chance
    #[arg(long, value_name = "N", default_value_t = crate::sim::scenario::SEED)]
    pub(super) seed: u64,
}

/// Compiles the snapshot for the node of `config`.
pub(super) fn compile_for(snapshot: &Snapshot, config: &NodeConfig) -> anyhow::Result<NodeState> {
    compile::compile(snapshot, &config.node, config).map_err(|error| Refused(error.to_string()).into())
}

/// Output forms of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Report {
    /// For people
    Text,
    /// JSON
    Json,
}

/// Where the daemon listens, and how long to wait for it.
#[derive(Debug, clap::Args)]
pub(super) struct DaemonArgs {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET", default_value = "/run/weir/dataplane.sock")]
    socket: PathBuf,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
}

impl DaemonArgs {
    pub(super) fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.socket, self.timeout)
    }
    /// Connects for a request that the daemon itself may take `timeout` for: its own answer comes first.
    pub(super) fn connect_patiently(&self) -> Result<Client, ClientError> {
        Client::connect(&self.socket, self.timeout.saturating_add(Duration::from_secs(1)))
    }
}

/// What every question to the daemon has: where it is, and the form of the answer.
#[derive(Debug, clap::Args)]
pub(super) struct AskArgs {
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Output form
    #[arg(short, long, value_enum, default_value = "text")]
    pub(super) output: Output,
}

/// Which objects of a list, as with `kubectl get`.
#[derive(Debug, clap::Args)]
pub(super) struct ObjectArgs {
    /// Only with these names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
}

impl ObjectArgs {
    /// Tells whether an object is wanted; `namespace` is `None` for one that is in none.
    pub(super) fn wants(&self, namespace: Option<&str>, name: &str) -> bool {
        (self.namespace.is_none() || self.namespace.as_deref() == namespace)
            && (self.names.is_empty() || self.names.iter().any(|wanted| wanted == name))
    }
}

/// Parses `10s`, `500ms`, `1m30s`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().map_err(|error| error.to_string())?;
    Duration::try_from(parsed).map_err(|_| "must not be negative".into())
}

/// Parses `tcp`, `17`.
pub(super) fn parse_protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(proto::TCP),
        "udp" => Ok(proto::UDP),
        "sctp" => Ok(proto::SCTP),
        "icmp" | "icmpv4" => Ok(proto::ICMP),
        "icmpv6" => Ok(proto::ICMPV6),
        number => number.parse().map_err(|_| format!("{text:?} is no protocol; there are tcp, udp, sctp, icmp, icmpv6 and numbers")),
    }
}

/// Parses a drop reason, by its name or its number.
pub(super) fn parse_reason(text: &str) -> Result<DropReason, String> {
    let known = |reason: &&DropReason| reason.name().eq_ignore_ascii_case(text) || text.parse() == Ok(reason.code());
    DropReason::ALL.iter().find(known).copied().ok_or_else(|| format!("{text:?} is no drop reason; weir status names those that occurred"))
}

/// Output forms of what is a list or an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// For people with room
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Writes `value` to stdout in a machine's form.
pub(super) fn print_data(form: Output, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = match form {
        Output::Yaml => serde_saphyr::to_string(value).context("cannot write as YAML")?,
        Output::Json => serde_json::to_string_pretty(value)?,
        Output::Text | Output::Wide => bail!("text is not data"),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A table as kubectl prints one: capitals, no lines. Nothing at all where there are no rows.
pub(super) fn table(headers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(headers);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    if table.is_empty() { String::new() } else { table.trim_fmt() + "\n" }
}

/// A list in every form that it may be asked for in.
pub(super) struct Listing {
    /// What is listed, in the plural.
    pub(super) what: &'static str,
    /// All columns.
    pub(super) headers: &'static [&'static str],
    /// How many of them there are without `-o wide`.
    pub(super) narrow: usize,
}

impl Listing {
    /// Prints rows; `cells` gives a row's columns. A list without rows says so on stderr, as kubectl does.
    pub(super) fn print<R: Serialize>(&self, form: Output, rows: &[R], cells: impl Fn(&R) -> Vec<String>) -> anyhow::Result<Answer> {
        let columns = match form {
            Output::Json | Output::Yaml => return print_data(form, &rows).map(|()| Answer::Yes),
            Output::Text => self.narrow,
            Output::Wide => self.headers.len(),
        };
        let text = table(&self.headers[..columns], rows.iter().map(|row| cells(row).into_iter().take(columns).collect()));
        if text.is_empty() {
            eprintln!("No {} found.", self.what);
        }
        io::stdout().write_all(text.as_bytes())?;
        Ok(Answer::Yes)
    }
}

/// A time span as kubectl writes an age (`duration.HumanDuration` of apimachinery): two units at most, one where the second
/// says little.
pub(super) fn age(secs: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let two = |unit: u64, name: &str, below: u64, below_name: &str| match secs % unit / below {
        0 => format!("{}{name}", secs / unit),
        rest => format!("{}{name}{rest}{below_name}", secs / unit),
    };
    match secs {
        0..120 => format!("{secs}s"),
        120..600 => two(MINUTE, "m", 1, "s"),
        600..10_800 => format!("{}m", secs / MINUTE),
        10_800..28_800 => two(HOUR, "h", MINUTE, "m"),
        28_800..172_800 => format!("{}h", secs / HOUR),
        172_800..691_200 => two(DAY, "d", HOUR, "h"),
        _ if secs < 2 * YEAR => format!("{}d", secs / DAY),
        _ if secs < 8 * YEAR => two(YEAR, "y", DAY, "d"),
        _ => format!("{}y", secs / YEAR),
    }
}

/// `address:port`, with brackets around IPv6.
pub(super) fn endpoint(address: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_look_like_those_of_kubectl() {
        let text = table(&["NAMESPACE", "NAME"], [vec!["shop".into(), "web".into()], vec!["kube-system".into(), "dns".into()]]);
        assert_eq!(text, "NAMESPACE     NAME\nshop          web\nkube-system   dns\n");
        assert_eq!(table(&["NAME"], []), "");
    }

    #[test]
    fn ages_are_written_as_kubectl_writes_them() {
        for (secs, text) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (301, "5m1s"), (7200, "120m"), (10_860, "3h1m"), (86_399, "23h"), (432_000, "5d")]
        {
            assert_eq!(age(secs), text);
        }
        assert_eq!(age(431_999), "4d23h");
        assert_eq!(age(800 * 86_400), "2y70d");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("-1s").is_err() && parse_duration("10").is_err());
    }
}

//! What the daemon tells over HTTP, read by those who will read it: a real Prometheus asks for every panel of the Grafana
//! dashboard, promtool judges the metrics' names, a load balancer asks for a Service's health. Needs root.

mod lab_support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Lab, cluster, exec_ok, text};
use serde_json::Value;

/// Where the daemon's metrics are, in its node's namespace (`metrics.listen` of node.yaml).
const METRICS: &str = "http://127.0.0.1:9964";
/// Where Prometheus answers there.
const PROMETHEUS: &str = "127.0.0.1:9090";
/// How long Prometheus may take until it has seen everything twice.
const PATIENCE: Duration = Duration::from_secs(40);

/// A Service whose load balancer asks this node for its health.
const BALANCED: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: t, name: balanced}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.40
  clusterIPs: [10.96.0.40]
  externalTrafficPolicy: Local
  healthCheckNodePort: 31999
  selector: {app: APP}
  ports: [{port: 80, nodePort: 30080, targetPort: 8080}]
";

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/grafana/weir.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Title and query of every target of every panel.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap().iter().map(move |target| (panel, target)));
    targets.map(|(panel, target)| (text(&panel["title"]), text(&target["expr"]))).collect()
}

/// Starts Prometheus in the node's namespace, on a configuration that asks the daemon once a second.
fn prometheus(lab: &Lab) -> Running {
    let folder = lab.folder().join("prometheus");
    fs::create_dir(&folder).unwrap();
    let config = folder.join("prometheus.yml");
    let target = METRICS.trim_start_matches("http://");
    let scrape = format!("scrape_configs: [{{job_name: weir, static_configs: [{{targets: ['{target}']}}]}}]");
    fs::write(&config, format!("global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n{scrape}\n")).unwrap();
    let arguments = [
        format!("--config.file={}", config.display()),
        format!("--storage.tsdb.path={}", folder.join("data").display()),
        format!("--web.listen-address={PROMETHEUS}"),
        "--log.level=warn".into(),
    ];
    // Gone with the test, also where that is killed.
    let mut command = lab.command("node/node-a", &["setpriv", "--pdeathsig", "KILL", "prometheus"]);
    let log = fs::File::create(folder.join("log")).unwrap();
    Running(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// What Prometheus has for a query now: its samples.
fn ask(lab: &Lab, query: &str) -> Result<Vec<Value>, String> {
    let parameter = format!("query={query}");
    let url = format!("http://{PROMETHEUS}/api/v1/query");
    let said = lab.exec("node/node-a", &["curl", "-sS", "--max-time", "5", "--data-urlencode", &parameter, &url])?;
    let answer: Value = serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
    if answer["status"] != "success" {
        return Err(said);
    }
    Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
}

#[test]
fn prometheus_has_data_for_every_panel_of_the_dashboard() {
    let lab = Lab::up("prom", &cluster("e2e")).with_servers(&[("t/server", "server"), ("t/guarded", "guarded")]);
    let mut prometheus = prometheus(&lab);
    // A range that Grafana would choose for this scrape interval, and every node.
    let instant = |query: &str| query.replace("$__rate_interval", "5s").replace("$node", ".*");
    let queries = queries(&dashboard());
    assert!(queries.len() > 15, "{} queries", queries.len());
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Something forwarded, something refused, something dropped.
        exec_ok(&lab, "t/client", &["curl", "-sS", "--max-time", "5", "http://10.96.0.20/name"]);
        assert!(lab.exec("t/client", &["curl", "-sS", "--max-time", "1", "http://10.96.0.23"]).is_err());
        assert!(lab.exec("t/server", &["curl", "-sS", "--max-time", "1", "http://10.244.1.30:8080"]).is_err());
        assert!(prometheus.0.try_wait().unwrap().is_none(), "Prometheus has ended (ci/setup.sh installs it)");
        let empty: Vec<String> = queries
            .iter()
            .filter_map(|(title, query)| match ask(&lab, &instant(query)) {
                Ok(samples) if samples.is_empty() => Some(format!("{title}: no data for {query}")),
                Ok(_) => None,
                Err(error) => Some(format!("{title}: {query}: {error}")),
            })
            .collect();
        if empty.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{}\nstatus: {}", empty.join("\n"), lab.status());
    }
    for (query, label, value) in [
        ("rate(weir_drops_total[10s]) > 0", "reason", "POLICY_DENIED"),
        ("rate(weir_rejects_total[10s]) > 0", "reason", "SERVICE_BACKEND_NOT_FOUND"),
        ("rate(weir_packets_total[10s]) > 0", "verdict", "forward"),
        ("weir_services_without_endpoints == 1", "job", "weir"),
        ("weir_build_info", "node", "node-a"),
    ] {
        let samples = ask(&lab, query).unwrap();
        assert!(samples.iter().any(|sample| sample["metric"][label] == value), "{query}: {samples:?}");
    }
    lab.assert_sums_meet();
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist_and_in_the_form_that_grafana_takes() {
    let dashboard = dashboard();
    let (mut ids, mut taken) = (Vec::new(), Vec::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(["timeseries", "stat"].contains(&panel["type"].as_str().unwrap()), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (x, y, w, h) = (place("x"), place("y"), place("w"), place("h"));
        assert!(x + w <= 24 && w > 0 && h > 0, "Grafana's grid has 24 columns: {panel}");
        let apart = |(x2, y2, w2, h2): &(u64, u64, u64, u64)| x + w <= *x2 || x2 + w2 <= x || y + h <= *y2 || y2 + h2 <= y;
        assert!(taken.iter().all(apart), "panels lie on each other: {panel}");
        taken.push((x, y, w, h));
        ids.push(panel["id"].as_u64().unwrap());
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), taken.len(), "panels share a number");
    let variables: Vec<&str> = dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "node"]);
    for (title, query) in queries(&dashboard) {
        assert!(query.contains("$node"), "{title} cannot be narrowed to a node: {query}");
    }
}

#[test]
fn the_metrics_pass_promtool_and_the_health_pages_follow_the_daemon() {
    let lab = Lab::up("health", &cluster("e2e"));
    let get = |url: &str| lab.exec("node/node-a", &["curl", "-sS", "--max-time", "5", "-w", "\n%{http_code}", url]).unwrap();
    // Some counters have samples only once something happened.
    assert!(lab.exec("t/client", &["curl", "-sS", "--max-time", "1", "http://10.96.0.23"]).is_err());
    assert!(lab.exec("t/server", &["curl", "-sS", "--max-time", "1", "http://10.244.1.30:8080"]).is_err());
    let page = get(&format!("{METRICS}/metrics"));
    let metrics = page.strip_suffix("\n200").expect("a page of metrics");
    assert!(metrics.contains("weir_drops_total{reason=\"POLICY_DENIED\"}"), "{metrics}");
    let file = lab.folder().join("metrics");
    fs::write(&file, metrics).unwrap();
    let judged = Command::new("promtool").args(["check", "metrics", "--extended"]).stdin(fs::File::open(file).unwrap()).output();
    let judged = judged.expect("promtool is there (ci/setup.sh installs it)");
    let said = text(&judged);
    assert!(judged.status.success() && !said.to_lowercase().contains("error") && said.contains("weir_packets_total"), "{said}");
    assert!(!said.contains("weir_packets_total counter"), "promtool complains: {said}");

    for path in ["/readyz", "/livez", "/healthz"] {
        assert_eq!(get(&format!("{METRICS}{path}")), "ok\n\n200", "{path}");
    }
    let apply = |app: &str| {
        let file = lab.folder().join("balanced.yaml");
        fs::write(&file, BALANCED.replace("APP", app)).unwrap();
        let output = lab.weir_apply(&[&cluster("e2e"), &file]);
        assert!(output.status.success(), "{}", text(&output));
    };
    // t/server is here, t/remote is not; asked from another machine, at both addresses of the node.
    for (app, endpoints, status) in [("server", 1, 200), ("remote", 0, 503)] {
        apply(app);
        let expected = format!(
            "{{\"service\":{{\"namespace\":\"t\",\"name\":\"balanced\"}},\"localEndpoints\":{endpoints},\"serviceProxyHealthy\":true}}\n{status}"
        );
        for node in ["10.0.0.10", "[fd00:10::10]"] {
            let url = format!("http://{node}:31999/healthz");
            let said = lab.exec("outside", &["curl", "-sS", "--globoff", "--max-time", "5", "-w", "\n%{http_code}", &url]);
            assert_eq!(said.as_deref(), Ok(expected.as_str()), "{app} at {node}");
        }
    }
    lab.assert_sums_meet();
}

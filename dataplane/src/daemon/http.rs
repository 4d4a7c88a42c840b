//! What others ask the daemon over HTTP: load balancers whether a Service has endpoints here (E2.36), operators how it goes.
//!
//! All of it runs on one thread of its own, which shares nothing with the workers. The listeners of health checks follow the
//! state in force; a port that another process has is told in the log, once, and tried again.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use axum::routing::get;
use ipnet::IpNet;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::{Daemon, metrics};
use crate::model::NodeState;

/// How often a port that we have just given up is tried, and the pause between.
const RETRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// The daemon's HTTP servers.
pub(super) struct Http {
    runtime: Runtime,
    /// Workers are alive and work by the newest tables.
    healthy: Arc<AtomicBool>,
    /// The node is being deleted.
    leaving: Arc<AtomicBool>,
    open: BTreeMap<Name, Open>,
    /// Health checks that could not be opened, with the reason that stands in the log.
    failed: BTreeMap<Name, String>,
    metrics: Option<Listeners>,
}

/// `(namespace, name)` of a Service.
type Name = (String, String);

/// Where one server listens; it stops and its connections end once this is dropped.
struct Listeners(#[allow(dead_code)] Vec<oneshot::Sender<()>>); // held, never sent to

/// A health check that answers.
struct Open {
    port: u16,
    check: Arc<Check>,
    _listeners: Listeners,
}

/// What a health check says.
struct Check {
    name: Name,
    local_endpoints: AtomicU32,
    healthy: Arc<AtomicBool>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    service: Service<'a>,
    local_endpoints: u32,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Service<'a> {
    namespace: &'a str,
    name: &'a str,
}

impl Check {
    /// Status and body (E2.36).
    fn answer(&self) -> (StatusCode, String) {
        let (namespace, name) = (&*self.name.0, &*self.name.1);
        let local_endpoints = self.local_endpoints.load(Ordering::Relaxed);
        let service_proxy_healthy = self.healthy.load(Ordering::Relaxed);
        let good = local_endpoints > 0 && service_proxy_healthy;
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let answer = Answer { service: Service { namespace, name }, local_endpoints, service_proxy_healthy };
        (status, serde_json::to_string(&answer).unwrap_or_default())
    }
}

async fn answer_check(State(check): State<Arc<Check>>) -> impl IntoResponse {
    let (status, body) = check.answer();
    (status, [(CONTENT_TYPE, "application/json"), (X_CONTENT_TYPE_OPTIONS, "nosniff")], body)
}

impl Http {
    /// Starts the thread; nothing listens yet.
    ///
    /// # Errors
    /// Where the thread cannot start.
    pub(super) fn start() -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).max_blocking_threads(1).thread_name("http").enable_all().build();
        let runtime = runtime.context("cannot start the thread that answers HTTP")?;
        let (healthy, leaving) = (Arc::new(AtomicBool::new(true)), Arc::default());
        Ok(Self { runtime, healthy, leaving, open: BTreeMap::new(), failed: BTreeMap::new(), metrics: None })
    }

    /// Notes whether the workers do what they should.
    pub(super) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Tells whether a health check waits for its port.
    pub(super) fn lacks_ports(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Opens the health checks that a state asks for, closes the others, and updates what they say. They listen on all addresses
    /// of the node, or on those in `cidrs`, where NodePorts are served, if there are any.
    pub(super) fn follow(&mut self, state: &NodeState, cidrs: &[IpNet]) {
        self.leaving.store(state.leaving, Ordering::Relaxed);
        let wanted = wanted(state);
        let same = |name: &Name, port| wanted.get(name).is_some_and(|(wanted, _)| *wanted == port);
        let before = self.open.len();
        self.open.retain(|name, open| same(name, open.port));
        self.failed.retain(|name, _| wanted.contains_key(name));
        let gave_up = self.open.len() < before;
        for (name, (port, local_endpoints)) in wanted {
            if let Some(open) = self.open.get(&name) {
                open.check.local_endpoints.store(local_endpoints, Ordering::Relaxed);
                continue;
            }
            let check = Arc::new(Check { name: name.clone(), local_endpoints: local_endpoints.into(), healthy: self.healthy.clone() });
            let router = Router::new().fallback(answer_check).with_state(check.clone());
            match self.listen(&addresses(state, cidrs), port, &router, gave_up) {
                Ok(listeners) => {
                    tracing::info!(namespace = name.0, service = name.1, port, "health check open");
                    self.failed.remove(&name);
                    self.open.insert(name, Open { port, check, _listeners: listeners });
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.failed.get(&name) != Some(&reason) {
                        tracing::error!(
                            namespace = name.0,
                            service = name.1,
                            port,
                            error = reason,
                            "cannot listen on a Service's healthCheckNodePort; its load balancer will not send traffic here; trying on"
                        );
                    }
                    self.failed.insert(name, reason);
                }
            }
        }
    }

    /// Serves `router` on a port of all `addresses`, or nowhere.
    fn listen(&self, addresses: &[IpAddr], port: u16, router: &Router, patient: bool) -> io::Result<Listeners> {
        let sockets: Vec<TcpListener> = if addresses.is_empty() {
            // One socket for both families, where the kernel has both.
            let any = bind((Ipv6Addr::UNSPECIFIED, port).into(), patient);
            vec![match any {
                Err(error) if error.kind() != ErrorKind::AddrInUse => bind((Ipv4Addr::UNSPECIFIED, port).into(), patient)?,
                any => any?,
            }]
        } else {
            addresses.iter().map(|address| bind((*address, port).into(), patient)).collect::<io::Result<_>>()?
        };
        let _in_runtime = self.runtime.enter();
        let mut stops = Vec::new();
        for socket in sockets {
            socket.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(socket)?;
            let (stop, stopped) = oneshot::channel::<()>();
            let until = async move {
                let _ = stopped.await;
            };
            let server = axum::serve(listener, router.clone()).with_graceful_shutdown(until);
            self.runtime.spawn(async move { server.await });
            stops.push(stop);
        }
        Ok(Listeners(stops))
    }

    /// Serves `/metrics`, `/healthz`, `/livez` and `/readyz` at `listen`. Where that cannot be, the log says so and the daemon
    /// goes on without.
    pub(super) fn serve_metrics(&mut self, listen: &str, daemon: Weak<Daemon>) {
        let Ok(at) = listen.parse::<SocketAddr>() else { return };
        let router = Router::new()
            .route("/metrics", get(scrape))
            .route("/healthz", get(stays))
            .route("/livez", get(alive))
            .route("/readyz", get(ready))
            .with_state(Asked { daemon, healthy: self.healthy.clone(), leaving: self.leaving.clone() });
        match self.listen(&[at.ip()], at.port(), &router, false) {
            Ok(listeners) => self.metrics = Some(listeners),
            Err(error) => {
                tracing::error!(listen, %error, "cannot serve metrics; try: another metrics.listen in node.yaml, or \"\" for none")
            }
        }
    }
}

/// Binds; one who is `patient` waits for a socket of ours to be closed.
fn bind(at: SocketAddr, patient: bool) -> io::Result<TcpListener> {
    for _ in 0..if patient { RETRIES } else { 0 } {
        match TcpListener::bind(at) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    TcpListener::bind(at)
}

/// The health checks that a state asks for: port and endpoints by Service. A pod with two addresses is one endpoint.
fn wanted(state: &NodeState) -> BTreeMap<Name, (u16, u32)> {
    let mut wanted: BTreeMap<Name, (u16, u32)> = BTreeMap::new();
    for service in &state.services {
        if let Some(port) = service.health_check_port {
            let entry = wanted.entry((service.namespace.clone(), service.name.clone())).or_insert((port, 0));
            entry.1 = entry.1.max(service.local_ready);
        }
    }
    wanted
}

/// This node's addresses in `cidrs`; none = all that it has.
fn addresses(state: &NodeState, cidrs: &[IpNet]) -> Vec<IpAddr> {
    let own = state.nodes.get(state.this_node as usize).map_or(&[][..], |node| &node.addresses);
    own.iter().copied().filter(|address| cidrs.iter().any(|cidr| cidr.contains(address))).collect()
}

/// What the operator's pages ask.
#[derive(Clone)]
struct Asked {
    daemon: Weak<Daemon>,
    healthy: Arc<AtomicBool>,
    leaving: Arc<AtomicBool>,
}

async fn scrape(State(asked): State<Asked>) -> impl IntoResponse {
    // Workers answer between two batches: not on the thread that others wait for.
    let text = move || {
        let daemon = asked.daemon.upgrade()?;
        Some(metrics::text(&daemon.status(), &daemon.state().1))
    };
    let text = tokio::task::spawn_blocking(text).await;
    match text {
        Ok(Some(text)) => (StatusCode::OK, [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text),
        _ => (StatusCode::SERVICE_UNAVAILABLE, [(CONTENT_TYPE, "text/plain; charset=utf-8")], "ending\n".into()),
    }
}

/// The workers do what they should.
async fn alive(State(asked): State<Asked>) -> (StatusCode, &'static str) {
    match asked.healthy.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "a worker does not take new tables\n"),
    }
}

/// Likewise, on a node that stays: a load balancer whose Service has external policy Cluster asks this, and has time to go elsewhere
/// before the node is gone. Nobody would restart the daemon for it, so `/livez` does not say so (E2.37).
async fn stays(State(asked): State<Asked>) -> (StatusCode, &'static str) {
    match asked.leaving.load(Ordering::Relaxed) {
        true => (StatusCode::SERVICE_UNAVAILABLE, "the node is being deleted\n"),
        false => alive(State(asked)).await,
    }
}

/// Likewise, by a state that control sent.
async fn ready(State(asked): State<Asked>) -> (StatusCode, &'static str) {
    let daemon = asked.daemon.clone();
    let applied = tokio::task::spawn_blocking(move || daemon.upgrade().is_some_and(|daemon| daemon.state().0 > 0)).await;
    match applied {
        Ok(true) => alive(State(asked)).await,
        _ => (StatusCode::SERVICE_UNAVAILABLE, "no state was applied yet\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::model::Family;

    fn service(name: &str, family: Family, port: u16, local_ready: u32) -> Arc<crate::model::Service> {
        Arc::new(crate::model::Service {
            namespace: "shop".into(),
            name: name.into(),
            family,
            external_local: true,
            health_check_port: Some(port),
            local_ready,
            ..crate::model::Service::default()
        })
    }

    fn state(services: Vec<Arc<crate::model::Service>>) -> NodeState {
        NodeState { services, ..NodeState::default() }
    }

    /// A port that nobody has.
    fn free_port() -> u16 {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
    }

    /// The head and the body of what a port answers, or `None` where nobody listens.
    fn ask(port: u16, path: &str) -> Option<(String, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.to_ascii_lowercase(), body.into()))
    }

    #[test]
    fn a_health_check_answers_as_e2_36_says_and_follows_the_state() {
        let mut http = Http::start().unwrap();
        let port = free_port();
        http.follow(&state(vec![service("web", Family::V4, port, 2), service("web", Family::V6, port, 1)]), &[]);
        let (head, body) = ask(port, "/").unwrap();
        assert!(head.starts_with("http/1.1 200 ok"), "{head}");
        assert!(head.contains("content-type: application/json\r\n") && head.contains("x-content-type-options: nosniff"), "{head}");
        assert_eq!(body, r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#);

        http.follow(&state(vec![service("web", Family::V4, port, 0)]), &[]);
        let (head, body) = ask(port, "/healthz").unwrap();
        assert!(head.starts_with("http/1.1 503 ") && body.contains(r#""localEndpoints":0"#), "{head}\n{body}");

        http.follow(&state(vec![service("web", Family::V4, port, 1)]), &[]);
        http.set_healthy(false);
        let (head, body) = ask(port, "/").unwrap();
        assert!(head.starts_with("http/1.1 503 ") && body.contains(r#""serviceProxyHealthy":false"#), "{head}\n{body}");

        http.follow(&state(vec![]), &[]);
        let closed = (0..200).any(|_| {
            std::thread::sleep(PAUSE);
            ask(port, "/").is_none()
        });
        assert!(closed, "the Service is gone");
    }

    #[test]
    fn a_port_goes_from_one_service_to_another_at_once() {
        let mut http = Http::start().unwrap();
        let port = free_port();
        http.follow(&state(vec![service("a", Family::V4, port, 1)]), &[]);
        http.follow(&state(vec![service("b", Family::V4, port, 1)]), &[]);
        assert!(!http.lacks_ports() && ask(port, "/").unwrap().1.contains(r#""name":"b""#));
    }

    #[test]
    fn a_taken_port_disturbs_nobody_else_and_is_opened_once_it_is_free() {
        let mut http = Http::start().unwrap();
        let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let (port, other) = (taken.local_addr().unwrap().port(), free_port());
        let state = state(vec![service("a", Family::V4, port, 1), service("b", Family::V4, other, 1)]);
        http.follow(&state, &[]);
        assert!(http.lacks_ports() && ask(other, "/").is_some());
        drop(taken);
        http.follow(&state, &[]);
        assert!(!http.lacks_ports() && ask(port, "/").unwrap().0.starts_with("http/1.1 200"));
    }

    #[test]
    fn pages_for_the_operator_say_when_the_daemon_is_gone() {
        let mut http = Http::start().unwrap();
        let port = free_port();
        http.serve_metrics(&format!("127.0.0.1:{port}"), Weak::new());
        assert!(ask(port, "/healthz").unwrap().0.starts_with("http/1.1 200"));
        for path in ["/readyz", "/metrics"] {
            assert!(ask(port, path).unwrap().0.starts_with("http/1.1 503"), "{path}");
        }
        assert!(ask(port, "/").unwrap().0.starts_with("http/1.1 404"));
    }

    #[test]
    fn healthz_and_livez_differ_on_a_node_that_is_being_deleted_alone_e2_37() {
        let mut http = Http::start().unwrap();
        let port = free_port();
        http.serve_metrics(&format!("127.0.0.1:{port}"), Weak::new());
        let answers = || ["/healthz", "/livez"].map(|path| ask(port, path).unwrap().0[9..12].to_owned());
        assert_eq!(answers(), ["200", "200"]);
        http.follow(&NodeState { leaving: true, ..NodeState::default() }, &[]);
        assert_eq!(answers(), ["503", "200"]);
        http.follow(&NodeState::default(), &[]);
        assert_eq!(answers(), ["200", "200"]);
        http.set_healthy(false);
        assert_eq!(answers(), ["503", "503"], "a worker does not take new tables");
    }
}

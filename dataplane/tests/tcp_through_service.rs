//! Two userspace TCP stacks speak through a ClusterIP: a request, a megabyte back, an orderly end. Over one node and over two.

mod common;

use std::collections::VecDeque;

use common::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};
use weir_dataplane::conntrack::FlowState;
use weir_dataplane::io::PortId;
use weir_dataplane::model::*;

const BYTES: usize = 1 << 20;
const REQUEST: &[u8] = b"GET /megabyte HTTP/1.0\r\n\r\n";

/// A pod's interface.
#[derive(Default)]
struct Wire {
    inbox: VecDeque<Vec<u8>>,
    outbox: Vec<Vec<u8>>,
}
struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}
impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _now: Instant) -> Option<(Rx, Tx<'_>)> {
        let frame = self.inbox.pop_front()?;
        Some((Rx(frame), Tx(&mut self.outbox)))
    }
    fn transmit(&mut self, _now: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.outbox))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1450 + 14;
        capabilities.checksum = ChecksumCapabilities::default(); // verify everything
        capabilities
    }
}

/// A pod with a TCP stack and one socket.
struct Pod {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

impl Pod {
    fn new(address: &str) -> Self {
        let mut wire = Wire::default();
        let address = addr(address);
        // Pods' MACs are derived from their first address, which is the IPv4 one.
        let primary = match address {
            std::net::IpAddr::V4(_) => address,
            std::net::IpAddr::V6(a) => addr(&format!("10.244.{}.{}", a.segments()[2], a.segments()[7])),
        };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MacAddr::from_ip(primary).0)));
        config.random_seed = 3;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        // smoltcp takes no neighbour outside its own network, as the gateway of a /32 would be. So everything is its network here,
        // and the dataplane answers for all of it.
        interface.update_ip_addrs(|list| list.push(IpCidr::new(address.into(), 0)).unwrap());
        let buffer = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(tcp::Socket::new(buffer(), buffer()));
        Self { wire, interface, sockets, socket }
    }
    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }
    fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.outbox)
    }
}

/// Moves frames between pods and nodes until the client has everything and both ends have closed. `across` = there is a second
/// node, and the server is there.
fn transfer(nodes: &mut [TestNode], pods: &mut [(Pod, usize, PortId); 2], service: &str) {
    let (service_ip, port) = place(service);
    pods[1].0.socket().listen(8080).unwrap();
    let remote = IpEndpoint::new(service_ip.to_std().into(), port);
    let client = &mut pods[0].0;
    let socket = client.sockets.get_mut::<tcp::Socket<'_>>(client.socket);
    socket.connect(client.interface.context(), remote, 40000).unwrap();
    let (mut asked, mut sent, mut received) = (false, 0, 0);
    let mut request = Vec::new();
    let mut now = Instant::from_secs(1);
    for _round in 0..200_000 {
        now += Duration::from_millis(1);
        // What is on its way: node, port, frame.
        let mut travelling: VecDeque<(usize, PortId, Vec<u8>)> = VecDeque::new();
        for (pod, node, port) in pods.iter_mut() {
            travelling.extend(pod.poll(now).into_iter().map(|frame| (*node, *port, frame)));
        }
        while let Some((node, port, frame)) = travelling.pop_front() {
            nodes[node].now += 1_000;
            for (out, frame) in nodes[node].run(&[(port, frame)]) {
                match pods.iter_mut().find(|(_, at, port)| (*at, *port) == (node, out)) {
                    Some((pod, _, _)) => pod.wire.inbox.push_back(frame),
                    None if out == UPLINK => travelling.push_back((1 - node, UPLINK, frame)),
                    None => panic!("a frame left by {out:?}"),
                }
            }
        }
        let client = pods[0].0.socket();
        if client.may_send() && !asked {
            client.send_slice(REQUEST).unwrap();
            asked = true;
        }
        if client.can_recv() {
            let data = client.recv(|data| (data.len(), data.to_vec())).unwrap();
            for (n, byte) in data.iter().enumerate() {
                assert_eq!(*byte, pattern(received + n), "byte {}", received + n);
            }
            received += data.len();
        }
        if received == BYTES && !client.may_recv() {
            client.close();
        }
        let client_done = client.state() == tcp::State::TimeWait || client.state() == tcp::State::Closed;
        let server = pods[1].0.socket();
        if server.can_recv() {
            request.extend(server.recv(|data| (data.len(), data.to_vec())).unwrap());
        }
        if request == REQUEST && server.can_send() && sent < BYTES {
            let chunk: Vec<u8> = (sent..BYTES.min(sent + 16_384)).map(pattern).collect();
            sent += server.send_slice(&chunk).unwrap();
        }
        if sent == BYTES && server.may_send() {
            server.close();
        }
        if received == BYTES && asked && client_done | (server.state() == tcp::State::Closed) {
            return;
        }
    }
    panic!("the transfer did not end: {received} of {BYTES} bytes");
}

fn pattern(at: usize) -> u8 {
    (at * 31 + (at >> 8)) as u8
}

#[test]
fn a_megabyte_comes_through_a_cluster_ip_on_one_node() {
    let mut state = cluster(0);
    add_service(&mut state, "web6", Protocol::Tcp, &["[fd00:96::10]:80"], &["[fd00:244:1::5]:8080"]);
    for (client, server, service) in [("10.244.1.6", "10.244.1.5", "10.96.0.10:80"), ("fd00:244:1::6", "fd00:244:1::5", "[fd00:96::10]:80")]
    {
        let mut nodes = [TestNode::new(&state)];
        let ports = (nodes[0].pod("client"), nodes[0].pod("web"));
        transfer(&mut nodes, &mut [(Pod::new(client), 0, ports.0), (Pod::new(server), 0, ports.1)], service);
        let node = &nodes[0];
        assert_eq!(node.conns.used(), 1);
        let mut states = Vec::new();
        let now = weir_dataplane::conntrack::Ticks::from_nanos(node.now);
        node.conns.dump(&mut node.conns.reader().unwrap(), 1, node.conns.max(), now, |record| states.push(record.original.state));
        assert!(matches!(states[..], [FlowState::TimeWait | FlowState::LastAck | FlowState::CloseWait]), "{states:?}");
        assert_eq!(node.local.counters.drop, 0, "{:?}", node.local.counters.drops);
    }
}

#[test]
fn a_megabyte_comes_through_the_overlay() {
    let state = |this_node| {
        let mut state = cluster(this_node);
        state.services.clear();
        add_service(&mut state, "db", Protocol::Tcp, &["10.96.0.10:80"], &["10.244.2.7:8080"]);
        add_service(&mut state, "db6", Protocol::Tcp, &["[fd00:96::10]:80"], &["[fd00:244:2::7]:8080"]);
        isolate_everything_else(&mut state);
        state
    };
    for (client, server, service) in [("10.244.1.6", "10.244.2.7", "10.96.0.10:80"), ("fd00:244:1::6", "fd00:244:2::7", "[fd00:96::10]:80")]
    {
        let mut nodes = [TestNode::new(&state(0)), TestNode::new(&state(1))];
        let ports = (nodes[0].pod("client"), nodes[1].pod("db"));
        transfer(&mut nodes, &mut [(Pod::new(client), 0, ports.0), (Pod::new(server), 1, ports.1)], service);
        assert!(nodes[1].local.counters.encap > 300);
        assert_eq!((nodes[0].local.counters.drop, nodes[1].local.counters.drop), (0, 0));
    }
}

/// The database takes connections from clients to its port and nothing else.
fn isolate_everything_else(state: &mut NodeState) {
    isolate(state, 2, vec![1], 8080);
}

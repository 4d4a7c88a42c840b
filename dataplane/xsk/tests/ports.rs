//! Ports over real veth pairs: what comes in goes out, and no slot is ever lost.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{ETHERTYPE, Raw, frame, in_namespace, ip, port, veth};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use weir_xsk::{
    AttachMode, Attached, BUFFER_BYTES, FrameCounts, PACKET_BYTES_MAX, PortConfig, PortError, PortRole, Ports, Redirect, UmemConfig,
};

const CONFIG: UmemConfig = UmemConfig { slots: 2048, ring: 256 };

/// Two pods' veths on one memory: ports 0 (a0) and 1 (b0), the pods' ends are a1 and b1.
fn two_pods() -> (Ports, Redirect) {
    veth("a0", "a1");
    veth("b0", "b1");
    let mut ports = Ports::new(CONFIG).unwrap();
    let mut redirect = Redirect::load(8, 1).unwrap();
    for (index, name) in [(0, "a0"), (1, "b0")] {
        ports.add(index, &port(name)).unwrap();
        redirect.set_socket(index, 0, ports.socket(index).unwrap()).unwrap();
        assert_eq!(redirect.attach(index, name, PortRole::Pod, AttachMode::Auto).unwrap(), Attached::Copy);
    }
    (ports, redirect)
}

/// Sends what came in on one port out of the other; gives the number of frames.
fn forward(ports: &mut Ports, held: &mut Vec<(u16, weir_xsk::Frame)>) -> usize {
    let count = ports.rx(64, |index, frame| held.push((index, frame)));
    for (index, frame) in held.drain(..) {
        if let Err(frame) = ports.tx(1 - index, frame) {
            ports.free(frame);
        }
    }
    ports.flush();
    count
}

/// Ends senders also where the test panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assert_all_home(counts: FrameCounts) {
    assert_eq!(counts.lost(), 0, "{counts:?}");
    assert_eq!((counts.rx, counts.tx, counts.completion), (0, 0, 0), "{counts:?}");
}

#[test]
fn frames_in_are_frames_out_byte_for_byte() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        let mut held = Vec::new();
        for n in 0..3000u32 {
            let sent = frame(n, 18 + (n as usize * 7) % 1496);
            let (from, to) = if n % 3 == 0 { (&b, &a) } else { (&a, &b) };
            assert!(from.send(&sent));
            while forward(&mut ports, &mut held) == 0 {}
            let got = to.recv_where(|bytes| bytes[12..14] == ETHERTYPE).expect("the frame comes out");
            assert!(got == sent, "frame {n} of {} bytes changed", sent.len());
        }
        assert_all_home(ports.frames());
        assert_eq!(ports.faults(), 0);
    });
}

#[test]
fn a_packet_may_start_anywhere_when_it_is_sent() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        // What the kernel may be told of a packet stands in front of it.
        const ROOM: i32 = 24;
        for (n, shift) in (-100i32..=256 - ROOM).enumerate() {
            let sent = frame(n as u32, 400);
            assert!(a.send(&sent));
            let mut held = Vec::new();
            while ports.rx(64, |_, frame| held.push(frame)) == 0 {}
            let (_, mut out) = (assert_eq!(held.len(), 1), held.remove(0));
            let expected = if shift < 0 {
                out.pull_front(shift.unsigned_abs() as usize);
                sent[shift.unsigned_abs() as usize..].to_vec()
            } else {
                assert!(ports.arena().push_front(&mut out, shift as usize));
                ports.arena().bytes_mut(&mut out)[..shift as usize].fill(0x77);
                [vec![0x77; shift as usize], sent].concat()
            };
            ports.tx(1, out).unwrap();
            ports.flush();
            let got = b.recv_where(|bytes| *bytes == expected);
            assert!(got.is_some(), "a start moved by {shift}");
        }
        let mut cramped = ports.alloc().unwrap();
        assert!(ports.arena().fill(&mut cramped, &frame(0, 400)) && ports.arena().push_front(&mut cramped, 256 - ROOM as usize + 1));
        let cramped = ports.tx(1, cramped).unwrap_err();
        ports.free(cramped);
        assert_all_home(ports.frames());
    });
}

/// As [`two_pods`], with as long packets as there are.
fn two_pods_of_large_mtu() -> (Ports, Redirect) {
    let pods = two_pods();
    for end in ["a0", "a1", "b0", "b1"] {
        ip(&format!("link set {end} mtu {}", PACKET_BYTES_MAX - 14));
    }
    pods
}

#[test]
fn packets_of_many_buffers_pass_byte_for_byte() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods_of_large_mtu();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        let (mut held, buffer) = (Vec::new(), BUFFER_BYTES as usize);
        let edges = [buffer, 2 * buffer, 16 * buffer, 17 * buffer].into_iter().flat_map(|edge| [edge - 1, edge, edge + 1]);
        let lengths = edges.filter(|len| *len <= PACKET_BYTES_MAX as usize).chain((0..60).map(|n| 18 + n * 1087));
        for (n, len) in lengths.enumerate() {
            let sent = frame(n as u32, len);
            assert!(a.send(&sent), "{len} bytes");
            while ports.rx(64, |index, frame| held.push((index, frame))) == 0 {}
            assert_eq!((held.len(), held[0].1.total_len()), (1, len));
            assert_eq!(ports.arena().buffers(&held[0].1).count(), len.div_ceil(buffer));
            assert!(ports.arena().buffers(&held[0].1).collect::<Vec<_>>().concat() == sent, "{len} bytes came in changed");
            forward(&mut ports, &mut held);
            let got = b.recv_where(|bytes| bytes[12..14] == ETHERTYPE).expect("the packet comes out");
            assert!(got == sent, "{len} bytes changed");
        }
        assert_all_home(ports.frames());
        assert_eq!((ports.faults(), ports.statistics(0).unwrap().rx_dropped, ports.statistics(1).unwrap().invalid_descriptors), (0, 0, 0));
    });
}

#[test]
fn a_checksum_that_is_left_to_the_kernel_is_taken_as_right() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods_of_large_mtu();
        ip("link set b1 address 02:00:00:00:00:02");
        ip("address add 192.0.2.2/24 dev b1");
        let a = Raw::open("a1");
        let socket = std::net::UdpSocket::bind("192.0.2.2:7").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let payload: Vec<u8> = (0..20_000).map(|at| (at * 7 + at / 256) as u8).collect();
        // From 192.0.2.1 port 7, with the sums of its headers as a stack leaves them that expects hardware to finish the second.
        let (total, udp_len) = (payload.len() as u16 + 28, payload.len() as u16 + 8);
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 7, 0, 7, 0, 0, 0, 0];
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[24..26].copy_from_slice(&udp_len.to_be_bytes());
        let sum = |bytes: &[u8]| bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
        let folded = |sum: u32| ((sum & 0xffff) + (sum >> 16)) as u16;
        let (ip_sum, pseudo) = (!folded(sum(&header[..20])), folded(sum(&header[12..20]) + 17 + u32::from(udp_len)));
        header[10..12].copy_from_slice(&ip_sum.to_be_bytes());
        header[26..28].copy_from_slice(&pseudo.to_be_bytes());
        let sent = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0][..], &header, &payload].concat();
        for leaves in [false, true, false] {
            assert!(a.send(&sent));
            let mut held = Vec::new();
            while ports.rx(64, |_, frame| held.push(frame)) == 0 {}
            let mut packet = held.remove(0);
            // The start may still move.
            assert!(ports.arena().push_front(&mut packet, 50));
            assert!(!leaves || ports.arena().leave_checksum(&packet, 50 + 34, 6));
            packet.pull_front(50);
            ports.tx(1, packet).unwrap();
            ports.flush();
            let mut got = vec![0; 1 << 16];
            let got = socket.recv(&mut got).map(|len| got[..len].to_vec());
            assert_eq!(got.ok(), leaves.then(|| payload.clone()), "left to the kernel: {leaves}");
        }
        // A short one is finished by whoever has it.
        let mut short = ports.alloc().unwrap();
        assert!(ports.arena().fill(&mut short, &sent[..100]) && !ports.arena().leave_checksum(&short, 34, 6));
        ports.free(short);
        assert_all_home(ports.frames());
        assert_eq!(ports.statistics(1).unwrap().invalid_descriptors, 0);
    });
}

#[test]
fn buffers_come_back_whatever_becomes_of_their_packet() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods_of_large_mtu();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        let receive = |ports: &mut Ports| {
            assert!(a.send(&frame(7, 30_000)));
            let mut held = Vec::new();
            while ports.rx(64, |_, frame| held.push(frame)) == 0 {}
            held.remove(0)
        };
        // Dropped, replaced by a short answer, lengthened beyond what can be sent.
        let packet = receive(&mut ports);
        ports.free(packet);
        assert_all_home(ports.frames());
        let mut packet = receive(&mut ports);
        assert!(ports.arena().set_len(&mut packet, 100));
        ports.tx(1, packet).unwrap();
        ports.flush();
        assert_eq!(b.recv_where(|bytes| bytes[12..14] == ETHERTYPE).expect("the answer"), frame(7, 30_000)[..100]);
        assert_all_home(ports.frames());
        let mut packet = receive(&mut ports);
        for _ in 0..2 {
            let more = receive(&mut ports);
            ports.arena().append(&mut packet, more);
        }
        let packet = ports.tx(1, packet).unwrap_err();
        ports.free(packet);
        assert_all_home(ports.frames());
        assert!(ports.remove(0));
        ports.recover_all();
        assert_all_home(ports.frames());
    });
}

#[test]
fn every_slot_is_accounted_for_during_and_after_a_flood_of_long_packets() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods_of_large_mtu();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        let stop = AtomicBool::new(false);
        let mut forwarded = 0;
        std::thread::scope(|scope| {
            for (sender, len) in [(&a, 9000), (&b, 40_000)] {
                let stop = &stop;
                scope.spawn(move || {
                    let bytes = frame(1, len);
                    while !stop.load(Ordering::Relaxed) {
                        sender.send(&bytes);
                    }
                });
            }
            let _stop = StopOnDrop(&stop);
            let (mut held, end) = (Vec::new(), Instant::now() + Duration::from_millis(500));
            while Instant::now() < end {
                // Few at a time, so that packets are cut in the middle.
                let count = ports.rx(3, |index, frame| held.push((index, frame)));
                assert!(held.iter().all(|(index, frame)| frame.total_len() == if *index == 0 { 9000 } else { 40_000 }));
                forwarded += count;
                for (index, frame) in held.drain(..) {
                    if let Err(frame) = ports.tx(1 - index, frame) {
                        ports.free(frame);
                    }
                }
                ports.flush();
                let counts = ports.frames();
                assert_eq!(counts.lost(), 0, "{counts:?}");
            }
        });
        let mut held = Vec::new();
        for _ in 0..100 {
            forwarded += forward(&mut ports, &mut held);
        }
        assert!(forwarded > 50, "{forwarded} packets only");
        assert_all_home(ports.frames());
        assert_eq!(ports.faults(), 0);
        for index in [0, 1] {
            assert_eq!(ports.statistics(index).unwrap().invalid_descriptors, 0);
        }
    });
}

#[test]
fn every_slot_is_accounted_for_during_and_after_a_flood() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        let stop = AtomicBool::new(false);
        let mut forwarded = 0;
        std::thread::scope(|scope| {
            for sender in [&a, &b] {
                let stop = &stop;
                scope.spawn(move || {
                    let bytes = frame(1, 64);
                    while !stop.load(Ordering::Relaxed) {
                        sender.send(&bytes);
                    }
                });
            }
            let _stop = StopOnDrop(&stop);
            let (mut held, end) = (Vec::new(), Instant::now() + Duration::from_millis(700));
            while Instant::now() < end {
                forwarded += forward(&mut ports, &mut held);
                let counts = ports.frames();
                assert_eq!(counts.lost(), 0, "{counts:?}");
            }
        });
        let mut held = Vec::new();
        for _ in 0..100 {
            forwarded += forward(&mut ports, &mut held);
        }
        assert!(forwarded > 1000, "{forwarded} frames only");
        let counts = ports.frames();
        assert_all_home(counts);
        assert_eq!(counts.total, CONFIG.slots);
        assert_eq!(ports.faults(), 0);
        for index in [0, 1] {
            assert_eq!(ports.statistics(index).unwrap().invalid_descriptors, 0);
        }
    });
}

#[test]
fn a_port_removed_and_added_again_under_traffic_loses_nothing() {
    in_namespace(|| {
        let (mut ports, mut redirect) = two_pods();
        let (a, b) = (Raw::open("a1"), Raw::open("b1"));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let bytes = frame(1, 64);
                while !stop.load(Ordering::Relaxed) {
                    a.send(&bytes);
                    b.send(&bytes);
                }
            });
            let _stop = StopOnDrop(&stop);
            let mut held = Vec::new();
            for round in 0..10 {
                let index = round % 2;
                for _ in 0..200 {
                    forward(&mut ports, &mut held);
                }
                // Some frames are in the ring, none was flushed.
                ports.rx(64, |index, frame| held.push((index, frame)));
                for (index, frame) in held.drain(..) {
                    ports.tx(1 - index, frame).unwrap();
                }
                assert!(ports.remove(index) && !ports.remove(index));
                assert_eq!(ports.frames().lost(), 0, "{:?}", ports.frames());
                forward(&mut ports, &mut held);
                ports.add(index, &port(["a0", "b0"][usize::from(index)])).unwrap();
                redirect.set_socket(index, 0, ports.socket(index).unwrap()).unwrap();
                let mut count = 0;
                let end = Instant::now() + Duration::from_secs(2);
                while count == 0 && Instant::now() < end {
                    ports.rx(64, |from, frame| {
                        count += usize::from(from == index);
                        held.push((from, frame));
                    });
                    held.drain(..).for_each(|(_, frame)| ports.free(frame));
                }
                assert!(count > 0, "traffic comes again on port {index}");
            }
        });
        ports.remove(0);
        ports.remove(1);
        ports.recover_all();
        let counts = ports.frames();
        assert_eq!(counts, FrameCounts { total: CONFIG.slots, free: CONFIG.slots, ..FrameCounts::default() });
    });
}

#[test]
fn a_device_that_vanishes_gives_its_frames_back_and_others_go_on() {
    in_namespace(|| {
        let (mut ports, mut redirect) = two_pods();
        let a = Raw::open("a1");
        for n in 0..20 {
            a.send(&frame(n, 100));
        }
        ip("link del b0");
        let mut held = Vec::new();
        for _ in 0..20 {
            forward(&mut ports, &mut held);
        }
        assert_eq!(ports.frames().lost(), 0);
        assert!(ports.remove(1));
        ports.recover_all();
        redirect.detach(1);
        assert_all_home(ports.frames());
        // The memory still takes new ports.
        veth("c0", "c1");
        ports.add(1, &port("c0")).unwrap();
        redirect.set_socket(1, 0, ports.socket(1).unwrap()).unwrap();
        redirect.attach(1, "c0", PortRole::Pod, AttachMode::Auto).unwrap();
        let c = Raw::open("c1");
        a.send(&frame(7, 100));
        while forward(&mut ports, &mut held) == 0 {}
        assert_eq!(c.recv_where(|bytes| bytes[12..14] == ETHERTYPE), Some(frame(7, 100)));
    });
}

#[test]
fn a_port_refuses_what_the_kernel_would_keep_for_good() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        let mut empty = ports.alloc().unwrap();
        assert!(ports.arena().set_len(&mut empty, 13));
        let empty = ports.tx(0, empty).unwrap_err();
        let nowhere = ports.tx(5, empty).unwrap_err();
        ports.free(nowhere);
        assert_all_home(ports.frames());
    });
}

#[test]
fn a_full_queue_hands_the_frame_back() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        ip("link set a0 down");
        let mut sent = 0;
        let refused = loop {
            let mut next = ports.alloc().unwrap();
            assert!(ports.arena().fill(&mut next, &frame(sent, 64)));
            match ports.tx(0, next) {
                Ok(()) => sent += 1,
                Err(frame) => break frame,
            }
        };
        assert_eq!(sent, CONFIG.ring);
        ports.free(refused);
        ports.flush();
        assert_eq!(ports.frames().lost(), 0);
        let a = Raw::open("a1");
        ip("link set a0 up");
        ports.flush();
        assert_all_home(ports.frames());
        assert_eq!(a.recv_where(|bytes| bytes[12..14] == ETHERTYPE), Some(frame(0, 64)));
    });
}

#[test]
fn a_busy_queue_is_waited_for_and_then_refused() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        let mut second = Ports::new(UmemConfig { slots: 256, ring: 64 }).unwrap();
        let start = Instant::now();
        let error = second.add(0, &port("a0")).unwrap_err();
        assert!(matches!(&error, PortError::Busy { .. }), "{error}");
        assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
        assert!(error.to_string().starts_with("cannot attach to a0 queue 0: Device or resource busy (os error 16)\n"), "{error}");
        std::thread::scope(|scope| {
            let first = scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                ports.remove(0);
            });
            second.add(0, &port("a0")).unwrap();
            first.join().unwrap();
        });
        let error = second.add(1, &port("a0")).unwrap_err();
        assert!(matches!(&error, PortError::IndexTaken { index: 0, .. }), "one queue, one port: {error}");
    });
}

#[test]
fn what_is_not_there_is_named() {
    in_namespace(|| {
        let (mut ports, _redirect) = two_pods();
        let mut refused = |index, config: PortConfig| ports.add(index, &config).unwrap_err().to_string();
        assert_eq!(
            refused(4, PortConfig { queue: 3, ..port("a0") }),
            "cannot attach to a0 queue 3: Invalid argument (os error 22)\n  a0 has 1 queue (0)\n  \
             try: fewer workers, or `ethtool -L a0 combined 4`"
        );
        assert!(refused(4, port("nothere")).contains("no such interface"));
        assert!(refused(0, port("a0")).contains("port 0 is in use by a0"));
        assert_eq!(ports.indices(), [0, 1]);
    });
}

#[test]
fn without_the_capabilities_the_error_names_them() {
    in_namespace(|| {
        let none =
            CapabilitySets { effective: CapabilitySet::empty(), permitted: CapabilitySet::empty(), inheritable: CapabilitySet::empty() };
        set_capabilities(None, none).unwrap();
        let error = Ports::new(CONFIG).err().expect("refused").to_string();
        assert!(error.contains("not permitted") && error.contains("CAP_NET_RAW"), "{error}");
        let error = Redirect::load(8, 1).err().expect("refused").to_string();
        assert!(error.contains("CAP_BPF"), "{error}");
    });
}

#[test]
fn a_hundred_idle_ports_cost_less_than_a_hundredth_of_a_core() {
    in_namespace(|| {
        let mut ports = Ports::new(UmemConfig { slots: 8192, ring: 64 }).unwrap();
        let mut redirect = Redirect::load(128, 1).unwrap();
        for index in 0..110 {
            let name = format!("p{index}");
            veth(&name, &format!("q{index}"));
            ports.add(index, &PortConfig { waiting: 64, ..port(&name) }).unwrap();
            redirect.set_socket(index, 0, ports.socket(index).unwrap()).unwrap();
            redirect.attach(index, &name, PortRole::Pod, AttachMode::Auto).unwrap();
        }
        let cpu = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
        };
        ports.wait(Duration::ZERO).unwrap();
        let (start, used) = (Instant::now(), cpu());
        while start.elapsed() < Duration::from_secs(1) {
            ports.wait(Duration::from_millis(100)).unwrap();
            ports.rx(64, |_, _| panic!("nobody sends"));
        }
        let used = cpu() - used;
        assert!(used < Duration::from_millis(10), "{used:?} of a second");
        // And a packet on any of them ends the sleep.
        let raw = Raw::open("q109");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                raw.send(&frame(0, 64));
            });
            let start = Instant::now();
            ports.wait(Duration::from_secs(10)).unwrap();
            assert!(start.elapsed() < Duration::from_secs(5));
        });
        let mut held = Vec::new();
        assert_eq!(ports.rx(64, |index, frame| held.push((index, frame))), 1);
        assert_eq!(held[0].0, 109);
        held.drain(..).for_each(|(_, frame)| ports.free(frame));
        assert_all_home(ports.frames());
    });
}

//! Our rings against another's: at the other end of the veth is a socket of xsk-rs, whose rings and memory are libxdp's.

mod common;

use std::io::Write;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use common::{frame, in_namespace, port, veth};
use weir_xsk::{AttachMode, PortRole, Ports, Redirect, UmemConfig};
use xsk_rs::config::{BindFlags, LibxdpFlags, SocketConfig};
use xsk_rs::{FrameDesc, Socket, Umem};

const FRAMES: usize = 64;

#[test]
fn frames_pass_between_our_rings_and_those_of_libxdp() {
    in_namespace(|| {
        veth("a0", "a1");
        let mut ports = Ports::new(UmemConfig { slots: 512, ring: 64 }).unwrap();
        ports.add(0, &port("a0")).unwrap();
        let mut redirect = Redirect::load(2, 1).unwrap();
        redirect.set_socket(0, 0, ports.socket(0).unwrap()).unwrap();
        redirect.attach(0, "a0", PortRole::Pod, AttachMode::Auto).unwrap();

        let (umem, descs) = Umem::new(Default::default(), NonZeroU32::new(2 * FRAMES as u32).unwrap(), false).unwrap();
        let config = SocketConfig::builder()
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        // SAFETY: nothing else is bound to this queue, and the frames are used by one ring at a time, below.
        let (mut tx, mut rx, rings) = unsafe { Socket::new(config, &umem, &"a1".parse().unwrap(), 0) }.unwrap();
        let (mut fill, mut completion) = rings.unwrap();
        // SAFETY: the socket is open as long as its queues.
        let socket = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
        redirect.set_socket(1, 0, socket).unwrap();
        redirect.attach(1, "a1", PortRole::Pod, AttachMode::Auto).unwrap();
        let (to_receive, to_send) = descs.split_at(FRAMES);
        // SAFETY: these frames are of this memory and in no other ring.
        assert_eq!(unsafe { fill.produce(to_receive) }, FRAMES);

        // Each of 1,000 frames comes from libxdp's ring into ours, grows by a byte at the front, and goes back.
        let (mut desc, mut got) = (to_send[0], vec![FrameDesc::default(); FRAMES]);
        for n in 0..1000u32 {
            let sent = frame(n, 60 + (n as usize * 7) % 1400);
            // SAFETY: this one frame is in no ring: it came back from the completion ring before it is used again.
            unsafe {
                let mut data = umem.data_mut(&mut desc);
                let mut cursor = data.cursor();
                cursor.set_pos(0);
                cursor.write_all(&sent).unwrap();
                assert_eq!(tx.produce_and_wakeup(&[desc]).unwrap(), 1);
            }
            let deadline = Instant::now() + Duration::from_secs(5);
            let mut held = Vec::new();
            while ports.rx(64, |_, frame| held.push(frame)) == 0 {
                assert!(Instant::now() < deadline, "frame {n} does not come");
            }
            let mut packet = held.remove(0);
            assert!(ports.arena().bytes(&packet) == sent, "frame {n} changed on its way in");
            assert!(ports.arena().push_front(&mut packet, 1));
            ports.arena().bytes_mut(&mut packet)[0] = n as u8;
            ports.tx(0, packet).unwrap();
            ports.flush();
            // SAFETY: overwritten before they are read, by a ring of this memory.
            let count = unsafe { rx.poll_and_consume(&mut got, 5000) }.unwrap();
            assert_eq!(count, 1, "frame {n} does not come back");
            // SAFETY: the frame was just received, and goes to the fill ring only below.
            let back = unsafe { umem.data(&got[0]) }.contents().to_vec();
            assert!(back[0] == n as u8 && back[1..] == sent[..], "frame {n} changed on its way out");
            // SAFETY: what was received is given back; the frame that was sent is taken back.
            unsafe {
                assert_eq!(fill.produce(&got[..1]), 1);
                while completion.consume_one(&mut desc) == 0 {
                    assert!(Instant::now() < deadline, "frame {n} was not sent");
                }
            }
        }
        assert_eq!((ports.frames().lost(), ports.faults()), (0, 0));
    });
}

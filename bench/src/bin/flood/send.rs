//! The sender: whole frames through an `AF_PACKET` socket, many per system call, as fast as it can.
//!
//! Frames rather than datagrams, so that one flow and a new flow per packet cost the sender the same.

use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, MultiHeaders, SockFlag, SockType, bind, sendmmsg, socket};

use crate::frames::{HEADERS, Maker, PAYLOAD_MIN, Target};

/// Frames per system call.
const BURST: usize = 64;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the frames leave
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// The MAC that they are sent to
    #[arg(long)]
    mac: String,
    #[command(flatten)]
    target: Target,
    /// Length of a frame on a wire, checksum included
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Flows in turn; 0 = each frame begins a new one
    #[arg(long, default_value_t = 1)]
    flows: u64,
    /// Number of the first flow
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How long
    #[arg(long)]
    secs: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!((HEADERS + PAYLOAD_MIN + 4..=1514).contains(&args.bytes), "a frame of {} bytes", args.bytes);
    let (link, source) = interface(&args.interface)?;
    let from = link.addr().with_context(|| format!("{} has no MAC", args.interface))?;
    let mut maker = Maker::new(args.bytes, [from, mac(&args.mac)?], source, args.target);
    let sender = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).context("a packet socket; are you root?")?;
    bind(sender.as_raw_fd(), &link).with_context(|| format!("cannot bind to {}", args.interface))?;

    let mut headers = MultiHeaders::preallocate(BURST, None);
    let mut frames = vec![vec![0; args.bytes - 4]; BURST];
    let none = [None::<LinkAddr>; BURST];
    let end = Instant::now() + Duration::from_secs_f64(args.secs);
    let (mut sent, mut refused) = (0_u64, 0_u64);
    let mut next = 0_u64;
    while Instant::now() < end {
        for frame in &mut frames {
            frame.copy_from_slice(maker.make(args.first + next));
            next += 1;
            if next == args.flows {
                next = 0;
            }
        }
        let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
        match sendmmsg(sender.as_raw_fd(), &mut headers, &slices, none, [], MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64,
            // A full queue is what is looked for.
            Err(Errno::ENOBUFS | Errno::EAGAIN) => refused += 1,
            Err(error) => bail!("cannot send: {error}"),
        }
    }
    println!("{{\"sent\": {sent}, \"refused\": {refused}}}");
    Ok(())
}

/// An interface, as one sends through it, and its IPv4 address.
fn interface(name: &str) -> anyhow::Result<(LinkAddr, Ipv4Addr)> {
    let addresses = || getifaddrs().map(|all| all.filter(|one| one.interface_name == name).filter_map(|one| one.address));
    let link = addresses()?.find_map(|address| address.as_link_addr().copied());
    let source = addresses()?.find_map(|address| address.as_sockaddr_in().map(|address| address.ip()));
    link.zip(source).with_context(|| format!("no interface {name} with an IPv4 address"))
}

fn mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{text:?} is no MAC"))
}

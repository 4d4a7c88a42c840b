//! The receiver and its clock: counts what the pod's stack delivers, checks a sample, and reads everything that goes with the
//! rate at the same two instants.
//!
//! Nobody reads the sockets but for the sample: full ones drop, after the kernel's whole way up, so that receiving takes no
//! core from what is measured. What counts is what IP and UDP found right.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};

use crate::frames::{HEADERS, check};

/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// Datagrams of a sample, and of one socket in it.
const SAMPLE: u64 = 128;
const SAMPLE_OF_ONE: usize = 16;
/// What a socket holds, about: enough for a sample.
const RECEIVE_BUFFER: usize = 16 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// First port to listen on
    #[arg(long)]
    port: u16,
    /// Consecutive ports
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// Whom everything must come from
    #[arg(long)]
    from: IpAddr,
    /// Length of the frames, as the sender has it
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// From the first packet to the first reading
    #[arg(long, default_value_t = 0.3)]
    settle: f64,
    /// Between the readings
    #[arg(long)]
    secs: f64,
    /// Threads whose time is told, by number (`/proc/self/task/N` of their process)
    #[arg(long)]
    thread: Vec<u32>,
}

/// What is read at once.
#[derive(Clone, Copy, Default)]
struct Reading {
    delivered: u64,
    faulty: u64,
    busy: u64,
    user: u64,
    system: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let sockets: Vec<UdpSocket> = (args.port..args.port + args.ports)
        .map(|port| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("cannot listen on port {port}"))?;
            setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<anyhow::Result<_>>()?;
    println!("listening");
    let base = reading(&args.thread)?;
    let patience = Instant::now() + Duration::from_secs(5);
    while reading(&[])?.delivered == base.delivered {
        ensure!(Instant::now() < patience, "nothing arrived within 5 s");
        std::thread::sleep(SAMPLE_EVERY);
    }
    std::thread::sleep(Duration::from_secs_f64(args.settle));

    let (start, before) = (Instant::now(), reading(&args.thread)?);
    let end = start + Duration::from_secs_f64(args.secs);
    let mut sample = Sample::default();
    let mut turn = sockets.iter().cycle();
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        std::thread::sleep(SAMPLE_EVERY.min(end.saturating_duration_since(Instant::now())));
        // All sockets have their turn, also where everything comes to one of them.
        let enough = sample.checked + SAMPLE;
        for socket in turn.by_ref().take(sockets.len()) {
            sample.take(socket, &mut buffer, args)?;
            if sample.checked >= enough {
                break;
            }
        }
    }
    let (took, after) = (start.elapsed(), reading(&args.thread)?);
    let delivered = after.delivered - before.delivered;
    ensure!(after.faulty == base.faulty, "{} packets with wrong headers or checksums", after.faulty - base.faulty);
    ensure!(sample.wrong.is_empty(), "{} packets checked, among them wrong ones: {:?}", sample.checked, sample.wrong);
    ensure!(sample.checked > 0 || delivered == 0, "{delivered} packets arrived and none of them could be checked");
    println!(
        "{{\"secs\": {:.6}, \"packets\": {delivered}, \"busy_ticks\": {}, \"thread_user_ticks\": {}, \"thread_system_ticks\": {}, \"checked\": {}}}",
        took.as_secs_f64(),
        after.busy - before.busy,
        after.user - before.user,
        after.system - before.system,
        sample.checked,
    );
    Ok(())
}

#[derive(Default)]
struct Sample {
    checked: u64,
    wrong: BTreeMap<&'static str, u64>,
}

impl Sample {
    fn take(&mut self, socket: &UdpSocket, buffer: &mut [u8], args: &Args) -> anyhow::Result<()> {
        for _ in 0..SAMPLE_OF_ONE {
            let (len, from) = match socket.recv_from(buffer) {
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            self.checked += 1;
            let right = if from.ip() == args.from {
                check(&buffer[..len], from.port(), args.bytes - 4 - HEADERS)
            } else {
                Err("it came from another address")
            };
            if let Err(why) = right {
                *self.wrong.entry(why).or_default() += 1;
            }
        }
        Ok(())
    }
}

fn reading(threads: &[u32]) -> anyhow::Result<Reading> {
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let counters = |name: &str| -> Option<BTreeMap<&str, u64>> {
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let (names, values) = (lines.next()?, lines.next()?);
        Some(names.split_whitespace().zip(values.split_whitespace().filter_map(|value| value.parse().ok())).collect())
    };
    let (ip, udp) = counters("Ip").zip(counters("Udp")).context("/proc/net/snmp does not look as it should")?;
    let of = |counters: &BTreeMap<&str, u64>, name| counters.get(name).copied().unwrap_or_default();
    let (in_errors, full) = (of(&udp, "InErrors"), of(&udp, "RcvbufErrors"));
    let mut reading = Reading {
        // Not UDP's own count, which is of datagrams that were read.
        delivered: of(&ip, "InDelivers"),
        // A full socket counts as an error too.
        faulty: in_errors.saturating_sub(full) + of(&ip, "InHdrErrors") + of(&ip, "InAddrErrors") + of(&udp, "NoPorts"),
        busy: busy()?,
        ..Reading::default()
    };
    for thread in threads {
        let stat = fs::read_to_string(format!("/proc/{thread}/stat")).with_context(|| format!("no thread {thread}"))?;
        // The second field is the name in parentheses, which may hold anything; then utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks = |n: usize| fields.get(n - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        reading.user += ticks(14);
        reading.system += ticks(15);
    }
    Ok(reading)
}

/// Ticks that all cores spent on anything but idling.
fn busy() -> anyhow::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks: Vec<u64> = stat.lines().next().unwrap_or_default().split_whitespace().filter_map(|text| text.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    Ok(ticks.iter().take(8).sum::<u64>() - ticks.iter().skip(3).take(2).sum::<u64>())
}

//! UDP load for the side-by-side runs: a sender, an echo, a round-trip meter. Each ends by itself after its time.
//!
//! `load send ADDR:PORT BYTES SECS [FLOWS]` sends payloads of that length as fast as it can, from as many source ports in turn,
//! and prints how many. `load echo PORT SECS` answers every datagram. `load ping ADDR:PORT SECS` sends one at a time and prints
//! the median and the 99th percentile of the round trip in microseconds. `load sink PORT SECS` holds a port open without reading:
//! what arrived is counted at the interface.

use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: load send ADDR:PORT BYTES SECS [FLOWS] | echo PORT SECS | ping ADDR:PORT SECS | sink PORT SECS";
/// Datagrams between two looks at the clock.
const BURST: u32 = 64;
const WAIT: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["send", to, bytes, secs] => send(to, bytes, secs, "1"),
        ["send", to, bytes, secs, flows] => send(to, bytes, secs, flows),
        ["echo", port, secs] => echo(port, secs),
        ["ping", to, secs] => ping(to, secs),
        ["sink", port, secs] => sink(port, secs),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn end(secs: &str) -> Result<Instant, Box<dyn std::error::Error>> {
    Ok(Instant::now() + Duration::from_secs_f64(secs.parse()?))
}

fn send(to: &str, bytes: &str, secs: &str, flows: &str) -> Outcome {
    let sockets = (0..flows.parse::<u32>()?).map(|_| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        Ok(socket)
    });
    let sockets: Vec<UdpSocket> = sockets.collect::<std::io::Result<_>>()?;
    let payload = vec![0x5a; bytes.parse()?];
    let end = end(secs)?;
    let (mut sent, mut refused) = (0_u64, 0_u64);
    let mut turn = sockets.iter().cycle();
    while Instant::now() < end {
        for socket in turn.by_ref().take(BURST as usize) {
            // A full queue is what is looked for, and an answer that nobody listens does not matter.
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
    }
    println!("{sent} {refused}");
    Ok(())
}

fn echo(port: &str, secs: &str) -> Outcome {
    let socket = UdpSocket::bind(("0.0.0.0", port.parse()?))?;
    socket.set_read_timeout(Some(WAIT))?;
    let end = end(secs)?;
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    }
    Ok(())
}

fn ping(to: &str, secs: &str) -> Outcome {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(WAIT))?;
    let end = end(secs)?;
    let mut times = Vec::new();
    let mut buffer = [0; 64];
    while Instant::now() < end {
        let start = Instant::now();
        socket.send(&[0x5a; 22])?;
        if socket.recv(&mut buffer).is_ok() {
            times.push(start.elapsed().as_nanos() as f64 / 1000.0);
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied();
    let (Some(p50), Some(p99)) = (at(50), at(99)) else { return Err("no answer".into()) };
    println!("{p50:.2} {p99:.2}");
    Ok(())
}

fn sink(port: &str, secs: &str) -> Outcome {
    let socket = UdpSocket::bind(("0.0.0.0", port.parse()?))?;
    let end = end(secs)?;
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    drop(socket);
    Ok(())
}

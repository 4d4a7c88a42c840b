//! Round trips: datagrams, requests over one TCP connection, and a TCP connection per request.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Longest wait for an answer; a lost datagram is counted and the next one sent.
const WAIT: Duration = Duration::from_millis(500);
/// Of a request and of an answer.
const BYTES: usize = 22;

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Kind {
    /// One datagram there, one back
    Udp,
    /// A request and an answer over a connection that stands (netperf's TCP_RR)
    Tcp,
    /// A connection, a request, an answer, the end (netperf's TCP_CRR)
    Connect,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What a round trip is
    kind: Kind,
    /// Whom to ask
    to: SocketAddr,
    /// How long
    #[arg(long)]
    secs: f64,
    /// Silence before each round trip, so that everything on the way has gone to sleep
    #[arg(long, default_value_t = 0)]
    idle_ms: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EchoArgs {
    /// Port of datagrams, of connections that stand, and, one higher, of those that end after one answer
    port: u16,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.secs);
    let mut trip = trips(args)?;
    let (mut times, mut lost) = (Vec::new(), 0_u64);
    // The first one finds neighbours and fills caches.
    trip()?;
    while Instant::now() < end {
        if args.idle_ms > 0 {
            std::thread::sleep(Duration::from_millis(args.idle_ms));
        }
        let begun = Instant::now();
        match trip() {
            Ok(()) => times.push(begun.elapsed().as_nanos() as f64 / 1000.0),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => lost += 1,
            Err(error) => return Err(error).context("a round trip"),
        }
    }
    let took = start.elapsed().as_secs_f64();
    times.sort_unstable_by(f64::total_cmp);
    ensure!(!times.is_empty(), "no answer at all");
    let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
    println!(
        "{{\"trips\": {}, \"lost\": {lost}, \"per_sec\": {:.1}, \"p50_us\": {:.2}, \"p99_us\": {:.2}, \"max_us\": {:.2}}}",
        times.len(),
        times.len() as f64 / took,
        at(0.5),
        at(0.99),
        at(1.0),
    );
    Ok(())
}

type Trip = Box<dyn FnMut() -> std::io::Result<()>>;

fn trips(args: &Args) -> anyhow::Result<Trip> {
    let (to, request) = (args.to, [0x5a; BYTES]);
    let mut answer = [0; BYTES];
    Ok(match args.kind {
        Kind::Udp => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(WAIT))?;
            Box::new(move || socket.send(&request).and_then(|_| socket.recv(&mut answer)).map(drop))
        }
        Kind::Tcp => {
            let mut stream = TcpStream::connect_timeout(&to, WAIT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(WAIT))?;
            Box::new(move || stream.write_all(&request).and_then(|()| stream.read_exact(&mut answer)))
        }
        Kind::Connect => {
            let to = SocketAddr::new(to.ip(), to.port() + 1);
            Box::new(move || {
                let mut stream = TcpStream::connect_timeout(&to, WAIT)?;
                stream.set_read_timeout(Some(WAIT))?;
                stream.write_all(&request)?;
                stream.read_exact(&mut answer)?;
                // The server ends it first, so the client's ports are free again at once.
                if stream.read(&mut [0])? == 0 { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
            })
        }
    })
}

/// Answers until it is ended.
pub(crate) fn echo(args: &EchoArgs) -> anyhow::Result<()> {
    let datagrams = UdpSocket::bind(("0.0.0.0", args.port))?;
    let standing = TcpListener::bind(("0.0.0.0", args.port))?;
    let single = TcpListener::bind(("0.0.0.0", args.port + 1))?;
    println!("listening");
    std::thread::spawn(move || serve(&standing, true));
    std::thread::spawn(move || serve(&single, false));
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = datagrams.recv_from(&mut buffer)?;
        // Who asked may be gone.
        let _ = datagrams.send_to(&buffer[..len], from);
    }
}

fn serve(listener: &TcpListener, stands: bool) {
    for mut stream in listener.incoming().flatten() {
        let mut answers = move || -> std::io::Result<()> {
            stream.set_nodelay(true)?;
            let mut buffer = [0; BYTES];
            loop {
                stream.read_exact(&mut buffer)?;
                stream.write_all(&buffer)?;
                if !stands {
                    return Ok(());
                }
            }
        };
        // The end of a connection is how each of them ends.
        if stands {
            std::thread::spawn(move || drop(answers()));
        } else {
            drop(answers());
        }
    }
}

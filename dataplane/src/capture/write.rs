//! Writing captures: plain pcap for goldens, pcapng for people with Wireshark.
//!
//! Why not a crate: `epb_verdict`, comments and packet ids are what Wireshark is to show, and it is these 150 lines.

use std::io::{self, Write};

/// Writes a plain pcap file: Ethernet, nanoseconds, little endian, no cut packets.
#[derive(Debug)]
pub struct PcapWriter<W> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file header.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_3c4d_u32.to_le_bytes());
        header.extend([2, 0, 4, 0]);
        header.extend([0; 8]);
        header.extend(SNAPLEN.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        out.write_all(&header)?;
        Ok(Self { out })
    }

    /// Writes one frame, taken `time` nanoseconds after 1970.
    ///
    /// # Errors
    /// What the file says.
    pub fn packet(&mut self, time: u64, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u32;
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&((time / 1_000_000_000) as u32).to_le_bytes());
        header[4..8].copy_from_slice(&((time % 1_000_000_000) as u32).to_le_bytes());
        header[8..12].copy_from_slice(&len.to_le_bytes());
        header[12..16].copy_from_slice(&len.to_le_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(bytes)
    }

    /// Writes out what is buffered and gives the file back.
    ///
    /// # Errors
    /// What the file says.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Libpcap's own limit; frames of 80 kB occur.
const SNAPLEN: u32 = super::RECORD_MAX_BYTES as u32;

/// Seen by the interface on its way in, or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// What a pcapng packet carries besides its bytes.
#[derive(Clone, Debug)]
pub struct PacketNote<'a> {
    /// Joins the copies of one packet (`epb_packetid`).
    pub id: u64,
    /// Which way it goes (`epb_flags`).
    pub direction: Direction,
    /// Length of the frame, of which the capture may have less.
    pub wire_len: u32,
    /// The action as an XDP program would return it (`epb_verdict` of type 2): 1 drop, 2 pass, 3 send back, 4 redirect.
    pub xdp_action: Option<u64>,
    /// What Wireshark shows beside the packet (`opt_comment`), UTF-8; empty = nothing.
    pub comment: &'a [u8],
}

/// Writes a pcapng file: one section, an interface per port, nanoseconds.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> PcapngWriter<W> {
    /// Writes the section header; `application` is who writes (`shb_userappl`).
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(out: W, application: &str) -> io::Result<Self> {
        let mut writer = Self { out, block: Vec::new() };
        writer.begin(0x0a0d_0d0a);
        writer.word(0x1a2b_3c4d);
        writer.word(1); // version 1.0
        writer.block.extend([0xff; 8]); // length unknown
        writer.option(4, application.as_bytes());
        writer.end()?;
        Ok(writer)
    }

    /// Describes the next interface; the first one is number 0. All are Ethernet.
    ///
    /// # Errors
    /// What the file says.
    pub fn interface(&mut self, name: &str, description: &str) -> io::Result<()> {
        self.begin(1);
        self.word(1); // Ethernet, and 16 reserved bits
        self.word(SNAPLEN);
        self.option(2, name.as_bytes());
        if !description.is_empty() {
            self.option(3, description.as_bytes());
        }
        self.option(9, &[9]); // nanoseconds
        self.end()
    }

    /// Writes one frame of interface `interface`, taken `time` nanoseconds after 1970.
    ///
    /// # Errors
    /// What the file says.
    pub fn packet(&mut self, interface: u32, time: u64, bytes: &[u8], note: &PacketNote<'_>) -> io::Result<()> {
        self.begin(6);
        self.word(interface);
        self.word((time >> 32) as u32);
        self.word(time as u32);
        self.word(bytes.len() as u32);
        self.word(note.wire_len);
        self.padded(bytes);
        if !note.comment.is_empty() {
            self.option(1, note.comment);
        }
        let direction: u32 = if note.direction == Direction::In { 1 } else { 2 };
        self.option(2, &direction.to_le_bytes());
        self.option(5, &note.id.to_le_bytes());
        if let Some(action) = note.xdp_action {
            let mut verdict = [2; 9];
            verdict[1..].copy_from_slice(&action.to_le_bytes());
            self.option(7, &verdict);
        }
        self.end()
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// What the file says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Writes out what is buffered and gives the file back.
    ///
    /// # Errors
    /// What the file says.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.out)
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.word(kind);
        self.word(0); // the length, known at the end
    }

    fn word(&mut self, value: u32) {
        self.block.extend(value.to_le_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.block.extend(bytes);
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    /// Writes an option; what is longer than an option can be is cut.
    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(u16::MAX.into())];
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.padded(value);
    }

    fn end(&mut self) -> io::Result<()> {
        self.block.extend([0; 4]); // opt_endofopt
        let len = (self.block.len() + 4) as u32;
        self.word(len);
        self.block[4..8].copy_from_slice(&len.to_le_bytes());
        self.out.write_all(&self.block)
    }
}

//! Reading captures: pcap (microseconds, nanoseconds, either byte order, "modified"), pcapng, and both gzipped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use pcap_parser::nom;
use pcap_parser::pcapng::{Block, PcapNGOption, parse_block_be, parse_block_le};
use pcap_parser::traits::PcapNGPacketBlock;

use super::LinkType;

/// Bytes of the longest record that is believed; libpcap's own limit (`MAXIMUM_SNAPLEN`).
pub const RECORD_MAX_BYTES: usize = 262_144;

/// Bytes read at once. Holds the longest record and whatever stands around it.
const BUFFER_BYTES: usize = 1 << 20;
const _: () = assert!(BUFFER_BYTES > 2 * RECORD_MAX_BYTES);

/// Why a capture, or the rest of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file is not there or not ours to read.
    #[error("cannot open: {0}")]
    Open(#[source] io::Error),
    /// Nothing is in the file.
    #[error("the file is empty; a capture has at least a header")]
    Empty,
    /// Neither pcap nor pcapng.
    #[error("not a capture: it begins with {0}, which neither pcap nor pcapng does")]
    NotACapture(String),
    /// A compression that is not gzip.
    #[error("compressed with {0}; try: {0} -dc FILE | weir … --pcap -")]
    Compressed(&'static str),
    /// No record is of a link type that can be read.
    #[error("link type {0} cannot be read; known are Ethernet, raw IP, Linux cooked (SLL, SLL2) and loopback")]
    ForeignLink(LinkType),
    /// The file ends inside a record.
    #[error("cut short: it ends inside record {record}, {missing} bytes early")]
    Cut {
        /// Number of the record, from 1.
        record: u64,
        /// How many bytes are missing at least.
        missing: usize,
    },
    /// What stands there cannot be.
    #[error("corrupt at record {record} (byte {offset}): {what}")]
    Corrupt {
        /// Number of the record, from 1.
        record: u64,
        /// Where it begins in the (unpacked) file.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The file system, or gzip, says no.
    #[error("cannot read on after record {records}: {source}")]
    Read {
        /// Records read until then.
        records: u64,
        /// Why.
        source: io::Error,
    },
}

/// Where records were taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `if_name` of pcapng; plain pcap has none.
    pub name: Option<String>,
    /// What its records begin with.
    pub link: LinkType,
    /// Units of its timestamps per second.
    units_per_sec: u64,
    /// Added to its timestamps, seconds.
    offset_secs: i64,
}

/// One packet of a capture.
#[derive(Debug)]
pub struct Record<'a> {
    /// Number in the file, from 1.
    pub number: u64,
    /// When it was taken, nanoseconds since 1970. As written: it may run backwards.
    pub time: u64,
    /// Which interface took it: index for [`Capture::interface`].
    pub interface: u32,
    /// Bytes that the packet had on the wire; more than are here where it was cut.
    pub wire_len: u32,
    /// It went out by its interface (`epb_flags`); `false` where the capture does not say.
    pub out: bool,
    /// What the copies of one packet have in common (`epb_packetid`).
    pub id: Option<u64>,
    /// The Ethernet header that the record lacks, for other links.
    header: Option<[u8; 14]>,
    data: &'a [u8],
}

impl Record<'_> {
    /// Bytes of the Ethernet frame.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.header.map_or(0, |h| h.len()) + self.data.len()
    }
    /// Writes the Ethernet frame into `bytes`, which is [`len`](Self::len) bytes long.
    pub fn copy_to(&self, bytes: &mut [u8]) {
        let (front, rest) = bytes.split_at_mut(self.header.map_or(0, |h| h.len()));
        if let Some(header) = &self.header {
            front.copy_from_slice(header);
        }
        rest.copy_from_slice(self.data);
    }
    /// The bytes after the Ethernet header; empty where the frame is shorter than that.
    pub fn network(&self) -> &[u8] {
        if self.header.is_some() { self.data } else { self.data.get(14..).unwrap_or_default() }
    }
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Pcap { big_endian: bool, nanoseconds: bool, header_bytes: usize },
    Pcapng { big_endian: bool },
}

/// A capture being read, in constant memory.
pub struct Capture {
    source: Box<dyn Read + Send>,
    /// Bytes of the file taken from the disk so far.
    position: Arc<AtomicU64>,
    file_bytes: Option<u64>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
    /// Bytes of the unpacked file in front of `buffer[start]`.
    offset: u64,
    format: Format,
    interfaces: Vec<Interface>,
    records: u64,
    foreign: BTreeMap<LinkType, u64>,
    failed: bool,
}

impl Capture {
    /// Opens a capture file; `-` is stdin.
    ///
    /// # Errors
    /// `Open`, and those of [`new`](Self::new).
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        if path == Path::new("-") {
            return Self::new(Box::new(io::stdin()));
        }
        let file = File::open(path).map_err(CaptureError::Open)?;
        let meta = file.metadata().map_err(CaptureError::Open)?;
        if meta.is_dir() {
            return Err(CaptureError::Open(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")));
        }
        let mut capture = Self::new(Box::new(file))?;
        capture.file_bytes = Some(meta.len()).filter(|_| meta.is_file());
        Ok(capture)
    }

    /// Reads a capture from anywhere. The format is told by the first bytes, never by a name.
    ///
    /// # Errors
    /// `Empty`, `NotACapture`, `Compressed`, `ForeignLink` (pcap), `Cut`, `Read`.
    pub fn new(source: Box<dyn Read + Send>) -> Result<Self, CaptureError> {
        let position = Arc::new(AtomicU64::new(0));
        let counted = Counted { source, position: position.clone() };
        let mut capture = Self {
            source: Box::new(counted),
            position,
            file_bytes: None,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            at_end: false,
            offset: 0,
            format: Format::Pcapng { big_endian: false },
            interfaces: Vec::new(),
            records: 0,
            foreign: BTreeMap::new(),
            failed: false,
        };
        capture.fill(4)?;
        if capture.data().starts_with(&[0x1f, 0x8b]) {
            let packed = io::Cursor::new(capture.data().to_vec());
            let rest = std::mem::replace(&mut capture.source, Box::new(io::empty()));
            capture.source = Box::new(MultiGzDecoder::new(packed.chain(rest)));
            (capture.start, capture.end, capture.at_end) = (0, 0, false);
            capture.fill(4)?;
        }
        capture.read_magic()?;
        Ok(capture)
    }

    /// The interface that `index` of a [`Record`] names.
    pub fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get(index as usize)
    }
    /// Records given so far.
    pub fn records(&self) -> u64 {
        self.records
    }
    /// Records passed over because of their link type, by type. (pcapng mixes links; a plain pcap is refused at once.)
    pub fn foreign(&self) -> &BTreeMap<LinkType, u64> {
        &self.foreign
    }
    /// Bytes of the file read so far, and of the whole file where that is known.
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.position.load(Ordering::Relaxed), self.file_bytes)
    }

    /// Gives the next record; `None` at the end, and after an error.
    ///
    /// # Errors
    /// `Cut`, `Corrupt`, `Read`; `ForeignLink` at the end where no record could be read.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<Record<'_>, CaptureError>> {
        if self.failed {
            return None;
        }
        let found = match self.format {
            Format::Pcap { big_endian, nanoseconds, header_bytes } => self.next_pcap(big_endian, nanoseconds, header_bytes),
            Format::Pcapng { .. } => self.next_pcapng(),
        };
        match found {
            Ok(Some(found)) => {
                self.records += 1;
                let record_start = self.start - found.trailer_bytes - found.data_bytes;
                let data = &self.buffer[record_start..record_start + found.data_bytes];
                let (header, data) = self.interfaces[found.interface as usize].link.split(data);
                let Found { time, interface, wire_len, out, id, .. } = found;
                Some(Ok(Record { number: self.records, time, interface, wire_len, out, id, header, data }))
            }
            Ok(None) => {
                self.failed = true;
                let foreign = self.foreign.keys().next().filter(|_| self.records == 0);
                foreign.map(|link| Err(CaptureError::ForeignLink(*link)))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }

    fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Reads until `count` bytes are there or the file ends. Tells whether they are there.
    fn fill(&mut self, count: usize) -> Result<bool, CaptureError> {
        if self.end - self.start >= count {
            return Ok(true);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < count.min(self.buffer.len()) && !self.at_end {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.at_end = true,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let source = io::Error::new(error.kind(), "the gzip stream is cut short");
                    return Err(CaptureError::Read { records: self.records, source });
                }
                Err(source) => return Err(CaptureError::Read { records: self.records, source }),
            }
        }
        Ok(self.end >= count)
    }

    fn read_magic(&mut self) -> Result<(), CaptureError> {
        let data = self.data();
        let Some(&magic) = data.first_chunk::<4>() else {
            return Err(if data.is_empty() { CaptureError::Empty } else { CaptureError::NotACapture(hex(data)) });
        };
        let (big_endian, nanoseconds, modified) = match magic {
            [0x0a, 0x0d, 0x0d, 0x0a] => return self.read_section_order(),
            [0xd4, 0xc3, 0xb2, 0xa1] => (false, false, false),
            [0xa1, 0xb2, 0xc3, 0xd4] => (true, false, false),
            [0x4d, 0x3c, 0xb2, 0xa1] => (false, true, false),
            [0xa1, 0xb2, 0x3c, 0x4d] => (true, true, false),
            [0x34, 0xcd, 0xb2, 0xa1] => (false, false, true),
            [0xa1, 0xb2, 0xcd, 0x34] => (true, false, true),
            [0x28, 0xb5, 0x2f, 0xfd] => return Err(CaptureError::Compressed("zstd")),
            [0xfd, b'7', b'z', b'X'] => return Err(CaptureError::Compressed("xz")),
            [b'B', b'Z', b'h', _] => return Err(CaptureError::Compressed("bzip2")),
            [0x04, 0x22, 0x4d, 0x18] => return Err(CaptureError::Compressed("lz4")),
            _ => return Err(CaptureError::NotACapture(hex(&magic))),
        };
        if !self.fill(24)? {
            return Err(CaptureError::Cut { record: 0, missing: 24 - self.data().len() });
        }
        // The upper bits tell of a frame check sequence.
        let link = LinkType(word(self.data(), 20, big_endian) & 0x03ff_ffff);
        if !link.is_known() {
            return Err(CaptureError::ForeignLink(link));
        }
        self.consume(24);
        self.interfaces.push(Interface { name: None, link, units_per_sec: 0, offset_secs: 0 });
        // "Modified" records carry 8 bytes more: interface, protocol, packet type (Kuznetsov's libpcap).
        self.format = Format::Pcap { big_endian, nanoseconds, header_bytes: if modified { 24 } else { 16 } };
        Ok(())
    }

    /// The byte order of a pcapng section stands in its header block.
    fn read_section_order(&mut self) -> Result<(), CaptureError> {
        if !self.fill(12)? {
            return Err(CaptureError::Cut { record: 0, missing: 12 - self.data().len() });
        }
        let big_endian = match word(self.data(), 8, false) {
            0x1a2b_3c4d => false,
            0x4d3c_2b1a => true,
            _ => return Err(self.corrupt("a section header of no known byte order")),
        };
        self.format = Format::Pcapng { big_endian };
        Ok(())
    }

    fn corrupt(&self, what: impl Into<String>) -> CaptureError {
        CaptureError::Corrupt { record: self.records + 1, offset: self.offset, what: what.into() }
    }

    fn next_pcap(&mut self, big_endian: bool, nanoseconds: bool, header_bytes: usize) -> Result<Option<Found>, CaptureError> {
        if !self.fill(header_bytes)? {
            let have = self.data().len();
            let cut = CaptureError::Cut { record: self.records + 1, missing: header_bytes - have };
            return if have == 0 { Ok(None) } else { Err(cut) };
        }
        let [secs, fraction, data_bytes, wire_len] = [0, 4, 8, 12].map(|at| word(self.data(), at, big_endian));
        let data_bytes = data_bytes as usize;
        if data_bytes > RECORD_MAX_BYTES {
            return Err(self.corrupt(format!("a record of {data_bytes} bytes; the longest there is has {RECORD_MAX_BYTES}")));
        }
        if !self.fill(header_bytes + data_bytes)? {
            let missing = header_bytes + data_bytes - self.data().len();
            return Err(CaptureError::Cut { record: self.records + 1, missing });
        }
        self.consume(header_bytes + data_bytes);
        let time = u64::from(secs) * 1_000_000_000 + u64::from(fraction) * if nanoseconds { 1 } else { 1000 };
        Ok(Some(Found { time, interface: 0, wire_len, out: false, id: None, data_bytes, trailer_bytes: 0 }))
    }

    fn next_pcapng(&mut self) -> Result<Option<Found>, CaptureError> {
        loop {
            if !self.fill(12)? {
                let have = self.data().len();
                let cut = CaptureError::Cut { record: self.records + 1, missing: 12 - have };
                return if have == 0 { Ok(None) } else { Err(cut) };
            }
            if self.data().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
                self.read_section_order()?;
                self.interfaces.clear();
            }
            let Format::Pcapng { big_endian } = self.format else { return Ok(None) };
            let block_bytes = word(self.data(), 4, big_endian) as usize;
            if block_bytes < 12 || !block_bytes.is_multiple_of(4) || block_bytes > self.buffer.len() {
                return Err(self.corrupt(format!("a block of {block_bytes} bytes")));
            }
            if !self.fill(block_bytes)? {
                return Err(CaptureError::Cut { record: self.records + 1, missing: block_bytes - self.data().len() });
            }
            let block = &self.buffer[self.start..self.start + block_bytes];
            let parsed = if big_endian { parse_block_be(block) } else { parse_block_le(block) };
            let step = match parsed {
                Ok((_, Block::InterfaceDescription(idb))) => {
                    let resolution = idb.options.iter().find(|o| o.code.0 == 9).and_then(|o| o.value().first().copied());
                    let name = idb.if_name().and_then(Result::ok).map(|name| name.trim_end_matches('\0').to_owned());
                    let link = LinkType(idb.linktype.0 as u32);
                    let units_per_sec = units_per_sec(resolution.unwrap_or(6));
                    let offset = idb.options.iter().find(|o| o.code.0 == 14).and_then(|o| o.value().first_chunk().copied());
                    let offset_secs = offset.map_or(0, if big_endian { i64::from_be_bytes } else { i64::from_le_bytes });
                    Step::Interface(Interface { name, link, units_per_sec, offset_secs })
                }
                Ok((_, Block::EnhancedPacket(epb))) => {
                    let units = u64::from(epb.ts_high) << 32 | u64::from(epb.ts_low);
                    let data_bytes = epb.packet_data().len();
                    let option = |code: u16| epb.options.iter().find(|o| o.code.0 == code).map(PcapNGOption::value);
                    let flags = option(2).and_then(|value| value.first_chunk().copied());
                    let out = flags.map_or(0, if big_endian { u32::from_be_bytes } else { u32::from_le_bytes }) & 3 == 2;
                    let id = option(5).and_then(|value| value.first_chunk().copied());
                    let id = id.map(if big_endian { u64::from_be_bytes } else { u64::from_le_bytes });
                    let copy = (out, id);
                    Step::Packet { interface: epb.if_id, units: Some(units), wire_len: epb.orig_len(), copy, data_bytes, header_bytes: 28 }
                }
                Ok((_, Block::SimplePacket(spb))) => {
                    let data_bytes = (spb.orig_len() as usize).min(block_bytes.saturating_sub(16));
                    Step::Packet { interface: 0, units: None, wire_len: spb.orig_len(), copy: (false, None), data_bytes, header_bytes: 12 }
                }
                Ok(_) => Step::Nothing,
                Err(nom::Err::Incomplete(_)) => Step::Corrupt("a block that is longer inside than outside"),
                Err(_) => Step::Corrupt("a block that contradicts itself"),
            };
            match step {
                Step::Interface(interface) => self.interfaces.push(interface),
                Step::Nothing => {}
                Step::Corrupt(what) => return Err(self.corrupt(what)),
                Step::Packet { interface, units, wire_len, copy: (out, id), data_bytes, header_bytes } => {
                    let Some(known) = self.interfaces.get(interface as usize) else {
                        return Err(self.corrupt(format!("a packet of interface {interface}, which no block describes")));
                    };
                    let Some(trailer_bytes) = block_bytes.checked_sub(header_bytes + data_bytes) else {
                        return Err(self.corrupt("a packet longer than its block"));
                    };
                    if data_bytes > RECORD_MAX_BYTES {
                        return Err(self.corrupt(format!("a record of {data_bytes} bytes; the longest there is has {RECORD_MAX_BYTES}")));
                    }
                    if known.link.is_known() {
                        let time = units.map_or(0, |units| known.nanoseconds(units));
                        self.consume(block_bytes);
                        return Ok(Some(Found { time, interface, wire_len, out, id, data_bytes, trailer_bytes }));
                    }
                    let link = known.link;
                    *self.foreign.entry(link).or_default() += 1;
                }
            }
            self.consume(block_bytes);
        }
    }
}

impl Interface {
    /// Nanoseconds since 1970 of a timestamp of this interface.
    fn nanoseconds(&self, units: u64) -> u64 {
        let nanos = i128::from(units) * 1_000_000_000 / i128::from(self.units_per_sec) + i128::from(self.offset_secs) * 1_000_000_000;
        u64::try_from(nanos.max(0)).unwrap_or(u64::MAX)
    }
}

/// `if_tsresol`: a power of ten, or of two with the high bit set. What does not fit counts as nanoseconds.
fn units_per_sec(resolution: u8) -> u64 {
    match resolution {
        0..=19 => 10_u64.pow(resolution.into()),
        0x80..=0xbf => 1 << (resolution & 0x7f),
        _ => 1_000_000_000,
    }
}

/// Where a packet was found: right in front of `start`, which has moved past it.
struct Found {
    time: u64,
    interface: u32,
    wire_len: u32,
    out: bool,
    id: Option<u64>,
    data_bytes: usize,
    trailer_bytes: usize,
}

enum Step {
    Interface(Interface),
    Packet { interface: u32, units: Option<u64>, wire_len: u32, copy: (bool, Option<u64>), data_bytes: usize, header_bytes: usize },
    Nothing,
    Corrupt(&'static str),
}

fn word(data: &[u8], at: usize, big_endian: bool) -> u32 {
    let mut bytes = [0; 4];
    if let Some(found) = data.get(at..at + 4) {
        bytes.copy_from_slice(found);
    }
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

/// Counts the bytes that pass.
struct Counted {
    source: Box<dyn Read + Send>,
    position: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(bytes)?;
        self.position.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("format", &self.format).field("records", &self.records).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;

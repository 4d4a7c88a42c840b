//! Capture files: what tcpdump and Wireshark write and show.
//!
//! [`Capture`] reads pcap and pcapng, gzipped or not, record by record in constant memory, and gives every record an
//! Ethernet header, whatever link it was taken on. [`PcapWriter`] writes plain pcap, [`PcapngWriter`] pcapng with an
//! interface per port, a verdict and a comment per packet. Knows files and bytes, no ports and no pipeline.

mod link;
mod read;
mod write;

pub use link::LinkType;
pub use read::{Capture, CaptureError, Interface, RECORD_MAX_BYTES, Record};
pub use write::{Direction, PacketNote, PcapWriter, PcapngWriter};

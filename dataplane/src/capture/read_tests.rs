//! Tests of reading, against our own writers and hand-made bytes.

use std::io::Write as _;

use proptest::prelude::*;

use super::super::{Direction, PacketNote, PcapWriter, PcapngWriter};
use super::*;

/// All records that can be read, as (time, Ethernet frame), and the error that ended it.
fn read(bytes: &[u8]) -> (Vec<(u64, Vec<u8>)>, Option<CaptureError>) {
    let mut capture = match Capture::new(Box::new(io::Cursor::new(bytes.to_vec()))) {
        Ok(capture) => capture,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut records = Vec::new();
    loop {
        match capture.next() {
            None => return (records, None),
            Some(Err(error)) => return (records, Some(error)),
            Some(Ok(record)) => {
                let mut frame = vec![0xa5; record.len()];
                record.copy_to(&mut frame);
                records.push((record.time, frame));
            }
        }
    }
}

fn frames() -> Vec<(u64, Vec<u8>)> {
    let times = [1_700_000_000_123_456_789, 1_700_000_000_000_000_001, 5];
    times.into_iter().zip([60, 80_136, 1]).map(|(time, len)| (time, (0..len).map(|n| n as u8).collect())).collect()
}

fn pcap() -> Vec<u8> {
    let mut writer = PcapWriter::new(Vec::new()).unwrap();
    for (time, frame) in frames() {
        writer.packet(time, &frame).unwrap();
    }
    writer.finish().unwrap()
}

fn pcapng() -> Vec<u8> {
    let mut writer = PcapngWriter::new(Vec::new(), "weir test").unwrap();
    writer.interface("eth1", "uplink").unwrap();
    writer.interface("shop/web-0", "").unwrap();
    for (n, (time, frame)) in frames().into_iter().enumerate() {
        let note = PacketNote {
            id: n as u64,
            direction: Direction::In,
            wire_len: frame.len() as u32,
            xdp_action: Some(1),
            comment: b"drop POLICY_DENIED",
        };
        writer.packet(n as u32 % 2, time, &frame, &note).unwrap();
    }
    writer.finish().unwrap()
}

/// A pcap of one 4-byte record on `link`, microseconds, in either byte order.
fn one_record(link: u32, big_endian: bool, data: &[u8]) -> Vec<u8> {
    let words = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link, 7, 8, data.len() as u32, data.len() as u32];
    let mut bytes: Vec<u8> = words.iter().flat_map(|w: &u32| if big_endian { w.to_be_bytes() } else { w.to_le_bytes() }).collect();
    bytes.extend(data);
    bytes
}

#[test]
fn what_is_written_is_read_again_with_its_time_from_either_format_gzipped_or_not() {
    for bytes in [pcap(), pcapng()] {
        let (records, error) = read(&bytes);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(records, frames());

        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        assert_eq!(read(&gzip.finish().unwrap()).0, frames());
    }
}

#[test]
fn interfaces_of_pcapng_keep_their_names() {
    let mut capture = Capture::new(Box::new(io::Cursor::new(pcapng()))).unwrap();
    let mut names = Vec::new();
    while let Some(record) = capture.next() {
        let index = record.unwrap().interface;
        names.push(capture.interface(index).unwrap().name.clone().unwrap());
    }
    assert_eq!(names, ["eth1", "shop/web-0", "eth1"]);
}

#[test]
fn both_byte_orders_and_links_without_ethernet_are_read() {
    for big_endian in [false, true] {
        let (records, error) = read(&one_record(101, big_endian, &[0x60, 1, 2, 3]));
        assert!(error.is_none());
        assert_eq!(records[0].0, 7_000_008_000);
        assert_eq!(records[0].1[12..], [0x86, 0xdd, 0x60, 1, 2, 3]);
    }
}

#[test]
fn a_capture_cut_anywhere_shows_what_is_whole_and_says_so() {
    for bytes in [pcap(), pcapng()] {
        let whole = frames();
        for cut in (0..bytes.len()).step_by(if bytes.len() > 4096 { 7 } else { 1 }) {
            let (records, error) = read(&bytes[..cut]);
            assert!(records.len() <= whole.len() && records == whole[..records.len()], "cut at {cut}");
            assert!(error.is_some() || records.len() < whole.len(), "cut at {cut}");
        }
    }
    let (records, error) = read(&pcap()[..24 + 16 + 60 + 16 + 5]);
    assert_eq!(records.len(), 1);
    assert!(matches!(error, Some(CaptureError::Cut { record: 2, missing: 80_131 })), "{error:?}");
}

#[test]
fn a_cut_gzip_stream_is_an_error() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&pcap()).unwrap();
    let packed = gzip.finish().unwrap();
    assert!(matches!(read(&packed[..packed.len() - 12]).1, Some(CaptureError::Read { .. })));
}

#[test]
fn empty_foreign_and_lying_captures_are_told_apart() {
    assert!(matches!(read(&[]).1, Some(CaptureError::Empty)));
    assert!(matches!(read(b"kind: Pod").1, Some(CaptureError::NotACapture(_))));
    assert!(matches!(read(&[0x28, 0xb5, 0x2f, 0xfd, 0]).1, Some(CaptureError::Compressed("zstd"))));
    assert!(matches!(read(&one_record(105, false, &[0; 4])).1, Some(CaptureError::ForeignLink(LinkType(105)))));
    let mut lying = one_record(1, false, &[0; 4]);
    lying[32..36].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    assert!(matches!(read(&lying).1, Some(CaptureError::Corrupt { record: 1, offset: 24, .. })));
    let mut foreign = pcapng();
    let idb = foreign.windows(4).position(|w| w == [1, 0, 0, 0]).unwrap();
    // The section header's version is 1 too; the interface block follows it.
    let idb = idb + foreign[idb + 1..].windows(8).position(|w| w[..4] == [1, 0, 0, 0] && w[4] >= 20 && w[5..] == [0; 3]).unwrap() + 1;
    foreign[idb + 8] = 105;
    let (records, error) = read(&foreign);
    assert_eq!((records.len(), error.is_none()), (1, true), "only the second interface can be read: {error:?}");
}

proptest! {
    #[test]
    fn no_damage_makes_reading_panic_or_run_on(at in 0_usize..600, to in any::<u8>(), ng in any::<bool>()) {
        let mut bytes = if ng { pcapng() } else { pcap() };
        let at = at % bytes.len();
        bytes[at] = to;
        let (records, _) = read(&bytes);
        prop_assert!(records.len() <= 3);
    }
}

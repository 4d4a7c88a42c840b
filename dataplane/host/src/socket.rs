//! One netlink socket: a request goes out, its answers come back, an error becomes an [`Error`].
//!
//! Serves rtnetlink and generic netlink alike (RFC 3549 §2.3.2; `include/uapi/linux/netlink.h`). Blocking: the kernel
//! answers within the `send` call, so there is nothing to wait for and no runtime to carry along.

use std::cell::Cell;
use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_sys::{Socket as RawSocket, SocketAddr};

use crate::error::{Error, Result};

const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The error answer carries attributes (`NLM_F_ACK_TLVS`) and only the header of the request (`NLM_F_CAPPED`).
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// A dump that tables changed under is asked for again this often before its last answer is taken as it is.
const DUMP_ATTEMPTS: usize = 8;

/// A bound netlink socket. It belongs to the network namespace in which it was opened, wherever it is used later.
#[derive(Debug)]
pub(crate) struct Socket {
    raw: RawSocket,
    sequence: Cell<u32>,
}

/// One answer: the message's type and what follows its header.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(protocol: isize) -> Result<Self> {
        let action = "open a netlink socket";
        let mut raw = RawSocket::new(protocol).map_err(|e| Error::io(action, e))?;
        raw.bind_auto().map_err(|e| Error::io(action, e))?;
        raw.connect(&SocketAddr::new(0, 0)).map_err(|e| Error::io(action, e))?;
        // Explanations are a comfort: a kernel without them is fine.
        if let Err(error) = raw.set_ext_ack(true) {
            tracing::debug!(%error, "the kernel does not explain its refusals");
        }
        Ok(Self { raw, sequence: Cell::new(0) })
    }

    /// Sends one request and collects the answers until the acknowledgement.
    pub(crate) fn request(&self, kind: u16, flags: u16, payload: &[u8], action: &dyn Fn() -> String) -> Result<Vec<Answer>> {
        self.exchange(kind, flags | NLM_F_REQUEST | NLM_F_ACK, payload, action).map(|(answers, _)| answers)
    }

    /// Asks for a whole table, again if it changed meanwhile (`NLM_F_DUMP_INTR`).
    pub(crate) fn dump(&self, kind: u16, payload: &[u8], action: &dyn Fn() -> String) -> Result<Vec<Answer>> {
        let mut attempt = 1;
        loop {
            let (answers, interrupted) = self.exchange(kind, NLM_F_REQUEST | NLM_F_DUMP, payload, action)?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(answers);
            }
            attempt += 1;
        }
    }

    fn exchange(&self, kind: u16, flags: u16, payload: &[u8], action: &dyn Fn() -> String) -> Result<(Vec<Answer>, bool)> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let length = HEADER_LEN + payload.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&(length as u32).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(payload);
        self.raw.send(&bytes, 0).map_err(|e| Error::io(action(), e))?;

        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = match self.raw.recv_from_full() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(|e| Error::io(action(), e))?,
            };
            let mut rest = datagram.as_slice();
            while let Some((header, body, next)) = split_message(rest) {
                rest = next;
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NLMSG_DONE => return Ok((answers, interrupted)),
                    NLMSG_ERROR => {
                        return match read_error(body, header.flags) {
                            None => Err(Error::Malformed { action: action(), detail: "an error message without a number".into() }),
                            Some((0, _)) => Ok((answers, interrupted)),
                            Some((code, detail)) => {
                                Err(Error::Refused { action: action(), detail, source: io::Error::from_raw_os_error(-code) })
                            }
                        };
                    }
                    kind => answers.push(Answer { kind, payload: body.to_vec() }),
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Cuts the first message off a datagram: its header, its body, the rest. Messages are aligned to 4 bytes.
fn split_message(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let header = Header { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)? };
    let body = bytes.get(HEADER_LEN..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, body, rest))
}

/// Reads an `NLMSG_ERROR`: the negative error number (0 = acknowledged) and the kernel's explanation, if any.
fn read_error(body: &[u8], flags: u16) -> Option<(i32, Option<String>)> {
    let code = u32_at(body, 0)? as i32;
    if flags & NLM_F_ACK_TLVS == 0 {
        return Some((code, None));
    }
    let request_len = if flags & NLM_F_CAPPED != 0 { HEADER_LEN } else { u32_at(body, 4)? as usize };
    let text = attributes(body.get(4 + request_len.next_multiple_of(4)..).unwrap_or_default())
        .find(|&(kind, _)| kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned());
    Some((code, text))
}

/// Walks over netlink attributes: kind without its flag bits, value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends one attribute with its padding.
pub(crate) fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_and_stop_at_garbage() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 3, b"abc");
        put_attribute(&mut bytes, 0x8000 | 7, &[1, 2, 3, 4]);
        bytes.extend_from_slice(&[200, 0, 1, 0]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, &b"abc"[..]), (7, &[1, 2, 3, 4][..])]);
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0, "a length below the header ends the walk");
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; HEADER_LEN]);
        put_attribute(&mut body, NLMSGERR_ATTR_MSG, b"no such thing\0");
        assert_eq!(read_error(&body, NLM_F_CAPPED | NLM_F_ACK_TLVS), Some((-22, Some("no such thing".into()))));
        assert_eq!(read_error(&body, 0), Some((-22, None)));
        assert_eq!(read_error(&[1], 0), None);
    }
}

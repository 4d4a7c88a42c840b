//! [`Net`]: one network namespace's rtnetlink, and the requests that all kinds of objects share.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::Result;
use crate::netns::Netns;
use crate::socket::Socket;

/// A connection to the kernel's network configuration in one namespace.
///
/// It stays with the namespace in which it was opened, whatever thread uses it later. All functions block until the kernel
/// has done what was asked.
#[derive(Debug)]
pub struct Net {
    socket: Socket,
}

impl Net {
    /// Connects to the namespace of the calling thread.
    ///
    /// # Errors
    /// [`crate::Error::Refused`].
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(NETLINK_ROUTE)? })
    }

    /// Connects to the namespace `netns`.
    ///
    /// # Errors
    /// [`crate::Error::Refused`].
    pub fn open_in(netns: &Netns) -> Result<Self> {
        netns.run(Self::open)?
    }

    pub(crate) fn request(
        &self,
        message: &RouteNetlinkMessage,
        flags: u16,
        action: &dyn Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        Ok(decode(self.socket.request(message.message_type(), flags, &encode(message), action)?))
    }

    pub(crate) fn dump(&self, message: &RouteNetlinkMessage, action: &dyn Fn() -> String) -> Result<Vec<RouteNetlinkMessage>> {
        Ok(decode(self.socket.dump(message.message_type(), &encode(message), action)?))
    }
}

fn encode(message: &RouteNetlinkMessage) -> Vec<u8> {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    payload
}

/// Reads the answers; one that cannot be read (an attribute newer than the library) is left out, not the whole table.
fn decode(answers: Vec<crate::socket::Answer>) -> Vec<RouteNetlinkMessage> {
    answers
        .into_iter()
        .filter_map(|answer| {
            let mut header = NetlinkHeader::default();
            header.message_type = answer.kind;
            RouteNetlinkMessage::deserialize(&header, &answer.payload)
                .inspect_err(|error| tracing::warn!(kind = answer.kind, %error, "skipping an object of the kernel that cannot be read"))
                .ok()
        })
        .collect()
}

//! AF_XDP ports as a source and sink of frames: the live node's [`PacketIo`].

use std::io;

use weir_xsk::{Arena, Frame, Ports};

use super::{BATCH_MAX, Batch, Packet, PacketIo, PortId};
use crate::verdict::{DropReason, Verdict};

/// The ports of one worker. A [`PortId`] is the index of the port.
pub struct XskIo {
    ports: Ports,
}

impl XskIo {
    /// Moves frames of these ports.
    pub fn new(ports: Ports) -> Self {
        Self { ports }
    }
    /// The ports, to ask about them.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }
    /// The ports, to add and remove some, or to sleep on them.
    pub fn ports_mut(&mut self) -> &mut Ports {
        &mut self.ports
    }
}

impl PacketIo for XskIo {
    fn arena(&self) -> &Arena {
        self.ports.arena()
    }

    fn rx(&mut self, batch: &mut Batch) -> io::Result<()> {
        let room = BATCH_MAX.saturating_sub(batch.len());
        // Overwritten by the pipeline; a frame that it never saw would be told as one without a port.
        let verdict = Verdict::Drop(DropReason::PortUnavailable);
        self.ports.rx(room, |port, frame| batch.push(Packet { frame, in_port: PortId(port), verdict }));
        Ok(())
    }

    fn tx(&mut self, port: PortId, frame: Frame) -> bool {
        match self.ports.tx(port.0, frame) {
            Ok(()) => true,
            Err(frame) => {
                self.ports.free(frame);
                false
            }
        }
    }

    fn free(&mut self, frame: Frame) {
        self.ports.free(frame);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.ports.flush();
        Ok(())
    }
}

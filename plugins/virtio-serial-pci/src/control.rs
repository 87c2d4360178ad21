//! What device and driver tell each other of ports: VIRTIO 1.3 section 5.3.6.2.

/// Bytes of a message.
pub(crate) const LEN: usize = 8;

/// What a message is about. Those not listed the device has no use for.
pub(crate) mod event {
    /// Driver: it can use several ports.
    pub(crate) const DEVICE_READY: u16 = 0;
    /// Device: there is a new port.
    pub(crate) const DEVICE_ADD: u16 = 1;
    /// Device: a port is gone.
    pub(crate) const DEVICE_REMOVE: u16 = 2;
    /// Driver: it has set up the port.
    pub(crate) const PORT_READY: u16 = 3;
    /// Device: the port is a console.
    pub(crate) const CONSOLE_PORT: u16 = 4;
    /// Either side has opened or closed its end.
    pub(crate) const PORT_OPEN: u16 = 6;
    /// Device: what the port is called.
    pub(crate) const PORT_NAME: u16 = 7;
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control {
    /// The number of the port.
    pub(crate) port: u32,
    /// One of [`event`].
    pub(crate) event: u16,
    /// What it means depends on the event; 1 is yes.
    pub(crate) value: u16,
}

impl Control {
    /// The message as it stands in a buffer.
    pub(crate) fn bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&self.port.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.event.to_le_bytes());
        bytes[6..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

impl From<[u8; LEN]> for Control {
    fn from([a, b, c, d, e, f, g, h]: [u8; LEN]) -> Self {
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }
}

//! Where the transport's structures lie in BAR 0, and the capabilities that say so
//! (VIRTIO 1.3 section 4.1.4).

use baton_plugin_api::Result;
use baton_plugin_api::pci::ConfigSpace;

/// The BAR with everything in it.
pub(super) const BAR: u32 = 0;
/// Its size.
pub(super) const BAR_SIZE: u64 = 0x8000;

pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const MSIX_TABLE: u64 = 0x4000;
pub(super) const MSIX_PENDING: u64 = 0x7000;
/// Each structure has a page, the MSI-X table three.
pub(super) const AREA: u64 = 0x1000;

/// Bytes between the notification addresses of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// As many as have a notification address in the area, and with the config vector fit the table.
pub(super) const QUEUES_MAX: usize = 256;

const VENDOR_CAPABILITY: u8 = 0x09;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Adds the five capabilities. Returns where the one for access through config space begins.
pub(super) fn add_capabilities(config: &mut ConfigSpace, config_len: u32) -> Result<usize> {
    let area = AREA as u32;
    add(config, CFG_COMMON, COMMON as u32, area, &[])?;
    add(
        config,
        CFG_NOTIFY,
        NOTIFY as u32,
        area,
        &NOTIFY_MULTIPLIER.to_le_bytes(),
    )?;
    add(config, CFG_ISR, ISR as u32, 1, &[])?;
    if config_len > 0 {
        add(config, CFG_DEVICE, DEVICE as u32, config_len.min(area), &[])?;
    }
    let window = body(CFG_PCI, 0, 0, &[0; 4]);
    // The driver may write the BAR's number, the offset, the length and the data.
    let mut writable = vec![0; window.len()];
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    config.add_capability(VENDOR_CAPABILITY, &window, &writable)
}

fn add(config: &mut ConfigSpace, kind: u8, offset: u32, len: u32, more: &[u8]) -> Result<()> {
    config
        .add_capability(VENDOR_CAPABILITY, &body(kind, offset, len, more), &[])
        .map(|_| ())
}

/// `struct virtio_pci_cap` from its third byte on.
fn body(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    let cap_len = (16 + more.len()) as u8;
    let mut body = vec![cap_len, kind, BAR as u8, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

/// What the driver has written into the window of `VIRTIO_PCI_CAP_PCI_CFG` at `capability`: the
/// offset in the BAR and how many bytes, or nothing if that is no valid access.
pub(super) fn window(config: &ConfigSpace, capability: usize) -> Option<(u64, usize)> {
    let word = |at: usize| u32::from(config.u16_at(at)) | u32::from(config.u16_at(at + 2)) << 16;
    let bar = config.u16_at(capability + 4) as u8;
    let (offset, len) = (word(capability + 8), word(capability + 12) as usize);
    let fits = u64::from(offset) + len as u64 <= BAR_SIZE;
    (u32::from(bar) == BAR && matches!(len, 1 | 2 | 4) && fits).then_some((u64::from(offset), len))
}

/// Where the data bytes of the window lie in config space.
pub(super) fn window_data(capability: usize) -> u64 {
    capability as u64 + 16
}

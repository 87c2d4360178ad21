//! What a firmware does before a kernel starts: gives every BAR an address.

use super::{PciAddress, PciBus, PciFunction};
use crate::machine::layout;

const COMMAND: u64 = 0x04;
const DECODE_PORTS_AND_MEMORY: u16 = 0x3;
const BAR0: u64 = 0x10;
const HEADER_TYPE: u64 = 0x0e;
/// A bridge has two, and other registers behind them.
const BRIDGE_BARS: u64 = 2;
const BARS: u64 = 6;

/// Where BARs may go.
#[derive(Debug, Clone, Copy)]
pub struct PciWindows {
    /// The next free port, and the end.
    pub ports: (u64, u64),
    /// The next free address below 4 GiB, and the end.
    pub mmio32: (u64, u64),
    /// The next free address above RAM, and the end.
    pub mmio64: (u64, u64),
}

impl PciWindows {
    /// The windows of a machine whose RAM ends at `ram_end`.
    pub fn new(ram_end: u64) -> Self {
        let ports = u64::from(layout::PORT_WINDOW_START);
        let mmio64 = ram_end
            .max(layout::HIGH_RAM_START)
            .next_multiple_of(layout::MMIO64_ALIGN);
        Self {
            ports: (ports, ports + u64::from(layout::PORT_WINDOW_SIZE)),
            mmio32: (
                layout::MMIO32_START,
                layout::MMIO32_START + layout::MMIO32_SIZE,
            ),
            mmio64: (mmio64, mmio64 + layout::MMIO64_SIZE),
        }
    }
}

/// A BAR that fits nowhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "BAR {bar} of PCI function {at} needs {size:#x} bytes, and its window is full; take a device away"
)]
pub struct WindowFull {
    at: PciAddress,
    bar: u64,
    size: u64,
}

/// Sizes every BAR on the bus, gives it an address and switches decoding on, in the order of the
/// functions: the same machine always gets the same addresses.
pub fn assign(bus: &PciBus, mut windows: PciWindows) -> Result<(), WindowFull> {
    for (at, function) in bus.functions() {
        let mut bar = 0;
        let mut any = false;
        let mut header = [0];
        function.config_read(HEADER_TYPE, &mut header);
        let bars = if header[0] & 0x7f == 1 {
            BRIDGE_BARS
        } else {
            BARS
        };
        while bar < bars {
            let register = BAR0 + bar * 4;
            let flags = read32(&*function, register);
            let wide = flags & 0x7 == 0x4;
            write32(&*function, register, u32::MAX);
            let low = read32(&*function, register);
            let mask = if wide {
                write32(&*function, register + 4, u32::MAX);
                u64::from(low & !0xf) | u64::from(read32(&*function, register + 4)) << 32
            } else if flags & 1 != 0 {
                u64::from(low & !0x3) | !0xffff_ffff
            } else {
                u64::from(low & !0xf) | !0xffff_ffff
            };
            let size = (!mask).wrapping_add(1);
            if low != 0 && size != 0 {
                let window = if wide {
                    &mut windows.mmio64
                } else if flags & 1 != 0 {
                    &mut windows.ports
                } else {
                    &mut windows.mmio32
                };
                let address = allocate(window, size).ok_or(WindowFull { at, bar, size })?;
                write32(&*function, register, address as u32);
                if wide {
                    write32(&*function, register + 4, (address >> 32) as u32);
                }
                any = true;
            }
            bar += if wide { 2 } else { 1 };
        }
        if any {
            function.config_write(COMMAND, &DECODE_PORTS_AND_MEMORY.to_le_bytes());
        }
    }
    Ok(())
}

fn allocate(window: &mut (u64, u64), size: u64) -> Option<u64> {
    let base = window.0.checked_next_multiple_of(size)?;
    let end = base.checked_add(size).filter(|end| *end <= window.1)?;
    window.0 = end;
    Some(base)
}

fn read32(function: &dyn PciFunction, offset: u64) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write32(function: &dyn PciFunction, offset: u64, value: u32) {
    function.config_write(offset, &value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use baton_plugin_api::pci::{BarKind, ConfigSpace, Identity};
    use std::sync::{Arc, Mutex};

    struct Plain(Mutex<ConfigSpace>);

    impl PciFunction for Plain {
        fn config_read(&self, offset: u64, data: &mut [u8]) {
            self.0.lock().unwrap().read(offset, data);
        }
        fn config_write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().write(offset, data);
        }
    }

    #[test]
    fn every_bar_gets_an_aligned_address_in_its_window() {
        let bus = PciBus::default();
        let mut config = ConfigSpace::new(Identity::default());
        config.add_bar(0, BarKind::Memory32, 0x1000).unwrap();
        config.add_bar(1, BarKind::Port, 0x20).unwrap();
        config.add_bar(2, BarKind::Memory64, 0x10_0000).unwrap();
        let function = Arc::new(Plain(Mutex::new(config)));
        bus.insert(
            PciAddress {
                slot: 1,
                function: 0,
            },
            Arc::clone(&function) as _,
        );
        assign(&bus, PciWindows::new(1 << 32)).unwrap();
        let config = function.0.lock().unwrap();
        assert_eq!(config.bar_address(0), Some(layout::MMIO32_START));
        assert_eq!(
            config.bar_address(1),
            Some(u64::from(layout::PORT_WINDOW_START))
        );
        assert_eq!(config.bar_address(2), Some(1 << 32));
    }

    #[test]
    fn the_registers_of_a_bridge_are_not_taken_for_bars() {
        let bus = PciBus::default();
        let mut config = ConfigSpace::bridge(Identity::default());
        config.add_bar(0, BarKind::Memory32, 0x1000).unwrap();
        let function = Arc::new(Plain(Mutex::new(config)));
        let at = PciAddress {
            slot: 1,
            function: 0,
        };
        bus.insert(at, Arc::clone(&function) as _);
        assign(&bus, PciWindows::new(1 << 32)).unwrap();
        assert_eq!(read32(&*function, 0x10) & !0xf, layout::MMIO32_START as u32);
        assert_eq!(read32(&*function, 0x18), 0);
        assert_eq!(read32(&*function, 0x20), 0);
    }

    #[test]
    fn a_full_window_is_an_error_that_names_the_function() {
        let bus = PciBus::default();
        let mut config = ConfigSpace::new(Identity::default());
        config.add_bar(0, BarKind::Memory32, 1 << 31).unwrap();
        bus.insert(
            PciAddress {
                slot: 2,
                function: 0,
            },
            Arc::new(Plain(Mutex::new(config))),
        );
        let error = assign(&bus, PciWindows::new(0)).unwrap_err();
        assert!(error.to_string().contains("0000:00:02.0"), "{error}");
    }
}

//! The registers, as QEMU's `docs/specs/edu` describes them, and the work they order.

use baton_plugin_api::vm_memory::{Bytes, GuestAddress};
use baton_plugin_api::{Error, GuestRam, Result};

const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const INTERRUPT_RAISE: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

/// Major and minor version 1.0, and the device's name.
const IDENTITY: u64 = 0x0100_00ed;
/// Status: a factorial is being computed.
const COMPUTING: u32 = 0x01;
/// Status: interrupt when it is done.
const INTERRUPT_WHEN_DONE: u32 = 0x80;
/// Interrupt status: a factorial is done.
const FACTORIAL_DONE: u32 = 0x001;
/// Interrupt status: a transfer is done.
const DMA_DONE: u32 = 0x100;
/// DMA command: begin, and then: under way.
const DMA_START: u64 = 0x1;
/// DMA command: from the device's buffer to RAM; without it, the other way.
const DMA_TO_RAM: u64 = 0x2;
/// DMA command: interrupt when it is done.
const DMA_INTERRUPT: u64 = 0x4;

/// Where a transfer finds the device's own buffer.
const BUFFER_START: u64 = 0x4_0000;
/// The buffer's size.
const BUFFER: usize = 4096;

/// Everything the guest can see in BAR 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) liveness: u32,
    pub(crate) factorial: u32,
    pub(crate) status: u32,
    pub(crate) interrupts: u32,
    pub(crate) source: u64,
    pub(crate) destination: u64,
    pub(crate) count: u64,
    pub(crate) command: u64,
    pub(crate) buffer: Vec<u8>,
}

/// What a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// An interrupt.
    Interrupt,
    /// Something for the device's thread: [`Registers::work`].
    Work,
}

/// Work for the device's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Work {
    Factorial(u32),
    /// Into the buffer.
    Read {
        from: u64,
        into: std::ops::Range<usize>,
    },
    /// Out of the buffer.
    Write {
        bytes: Vec<u8>,
        to: u64,
    },
}

/// What became of it.
pub(crate) enum Done {
    Factorial(u32),
    Read { bytes: Vec<u8>, at: usize },
    Write,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            interrupts: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            buffer: vec![0; BUFFER],
        }
    }
}

impl Registers {
    /// Registers below 0x80 have 4 bytes, the others 4 or 8; every other access reads as ones.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            _ if !fits(offset, data.len()) => u64::MAX,
            IDENTIFICATION => IDENTITY,
            LIVENESS => u64::from(self.liveness),
            FACTORIAL => u64::from(self.factorial),
            STATUS => u64::from(self.status),
            INTERRUPT_STATUS => u64::from(self.interrupts),
            DMA_SOURCE => self.source,
            DMA_DESTINATION => self.destination,
            DMA_COUNT => self.count,
            DMA_COMMAND => self.command,
            _ => u64::MAX,
        };
        data.fill(0xff);
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// Accesses of another size are ignored, and so is what comes while work is under way.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if !fits(offset, data.len()) {
            return Effect::Nothing;
        }
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let (wide, value) = (u64::from_le_bytes(bytes), u64::from_le_bytes(bytes) as u32);
        let idle = self.command & DMA_START == 0;
        match offset {
            LIVENESS => self.liveness = !value,
            FACTORIAL if self.status & COMPUTING == 0 => {
                self.factorial = value;
                self.status |= COMPUTING;
                return Effect::Work;
            }
            STATUS => {
                self.status = (self.status & COMPUTING) | (value & INTERRUPT_WHEN_DONE);
            }
            INTERRUPT_RAISE => return self.raise(value),
            INTERRUPT_ACKNOWLEDGE => self.interrupts &= !value,
            DMA_SOURCE if idle => self.source = wide,
            DMA_DESTINATION if idle => self.destination = wide,
            DMA_COUNT if idle => self.count = wide,
            DMA_COMMAND if idle => {
                self.command = wide & (DMA_START | DMA_TO_RAM | DMA_INTERRUPT);
                if self.command & DMA_START != 0 {
                    return Effect::Work;
                }
            }
            _ => {}
        }
        Effect::Nothing
    }

    /// What the thread has to do next. An error tells why the driver's transfer is refused.
    pub(crate) fn work(&mut self) -> Result<Option<Work>> {
        if self.status & COMPUTING != 0 {
            return Ok(Some(Work::Factorial(self.factorial)));
        }
        if self.command & DMA_START == 0 {
            return Ok(None);
        }
        let to_ram = self.command & DMA_TO_RAM != 0;
        let inside = if to_ram {
            self.source
        } else {
            self.destination
        };
        let Some(range) = buffer_range(inside, self.count) else {
            self.command &= !DMA_START;
            return Err(Error::invalid(format!(
                "The driver asked for a transfer of {:#x} bytes at {inside:#x}, outside the buffer",
                self.count
            )));
        };
        Ok(Some(if to_ram {
            let bytes = self.buffer[range].to_vec();
            Work::Write {
                bytes,
                to: self.destination,
            }
        } else {
            Work::Read {
                from: self.source,
                into: range,
            }
        }))
    }

    /// Takes what the thread has done.
    pub(crate) fn done(&mut self, done: Done) -> Effect {
        match done {
            Done::Factorial(value) => {
                self.factorial = value;
                self.status &= !COMPUTING;
                if self.status & INTERRUPT_WHEN_DONE != 0 {
                    return self.raise(FACTORIAL_DONE);
                }
                return Effect::Nothing;
            }
            Done::Read { bytes, at } => self.buffer[at..at + bytes.len()].copy_from_slice(&bytes),
            Done::Write => {}
        }
        self.command &= !DMA_START;
        if self.command & DMA_INTERRUPT != 0 {
            return self.raise(DMA_DONE);
        }
        Effect::Nothing
    }

    fn raise(&mut self, interrupts: u32) -> Effect {
        self.interrupts |= interrupts;
        if self.interrupts == 0 {
            Effect::Nothing
        } else {
            Effect::Interrupt
        }
    }

    /// Whether a device can have these registers.
    pub(crate) fn check(&self) -> Result<()> {
        let sound = self.buffer.len() == BUFFER
            && self.status & !(COMPUTING | INTERRUPT_WHEN_DONE) == 0
            && self.command & !(DMA_START | DMA_TO_RAM | DMA_INTERRUPT) == 0;
        if sound {
            return Ok(());
        }
        let text = "The registers are none of this device's; the state is damaged";
        Err(Error::state(text))
    }
}

impl Work {
    /// Does it. What the driver can name wrongly ends as if it had been done.
    pub(crate) fn run(self, memory: &GuestRam) -> Done {
        match self {
            Work::Factorial(n) => Done::Factorial(factorial(n)),
            Work::Read { from, into } => {
                let mut bytes = vec![0; into.len()];
                let _ = memory.read_slice(&mut bytes, GuestAddress(from));
                Done::Read {
                    bytes,
                    at: into.start,
                }
            }
            Work::Write { bytes, to } => {
                let _ = memory.write_slice(&bytes, GuestAddress(to));
                Done::Write
            }
        }
    }
}

fn fits(offset: u64, len: usize) -> bool {
    len == 4 || (len == 8 && offset >= DMA_SOURCE)
}

fn buffer_range(address: u64, count: u64) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(address.checked_sub(BUFFER_START)?).ok()?;
    let end = start.checked_add(usize::try_from(count).ok()?)?;
    (end <= BUFFER).then_some(start..end)
}

/// In 32 bits, as the register has them: 34! and all beyond are 0 there, which ends it early.
fn factorial(n: u32) -> u32 {
    let mut product: u32 = 1;
    for factor in 1..=n {
        product = product.wrapping_mul(factor);
        if product == 0 {
            break;
        }
    }
    product
}

//! The chip: registers and input FIFO. It touches nothing outside, so that state can be loaded into
//! a new one before anything is given up.

use std::cell::Cell;
use std::convert::Infallible;

use vm_superio::serial::{NoEvents, Serial, SerialState};

/// What fits in the chip's input FIFO, in bytes.
pub(crate) const FIFO: usize = 64;

const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 0x10;

/// Interrupt enable: received data.
const ENABLE_RECEIVED: u8 = 0x01;
/// Interrupt identification: none.
pub(crate) const PENDING_NONE: u8 = 0x01;
/// Interrupt identification: the transmitter is empty.
pub(crate) const PENDING_SENT: u8 = 0x02;
/// Interrupt identification: received data.
pub(crate) const PENDING_RECEIVED: u8 = 0x04;

/// A 16550A.
pub(crate) struct Uart(Serial<Line, NoEvents, Vec<u8>>);

/// Remembers that the interrupt line is to be raised.
struct Line(Cell<bool>);

impl vm_superio::Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

impl Uart {
    /// As after power-on.
    pub(crate) fn new() -> Self {
        Self(Serial::new(Line(Cell::new(false)), Vec::new()))
    }

    /// As saved; `None` if there is more input than the FIFO takes. An interrupt that was pending
    /// will be raised once more, since nobody knows how far it got.
    pub(crate) fn from_state(state: &SerialState) -> Option<Self> {
        Serial::from_state(state, Line(Cell::new(false)), NoEvents, Vec::new())
            .map(Self)
            .ok()
    }

    /// The registers. Input that waits counts as a pending interrupt even when the guest has just
    /// acknowledged it, as on a real chip: a guest stopped between that and reading the input
    /// must find the reason for the interrupt it gets after the state is loaded.
    pub(crate) fn state(&self) -> SerialState {
        let mut state = self.0.state();
        if !state.in_buffer.is_empty() && state.interrupt_enable & ENABLE_RECEIVED != 0 {
            state.interrupt_identification &= !PENDING_NONE;
            state.interrupt_identification |= PENDING_RECEIVED;
        }
        state
    }

    /// Reads a register.
    pub(crate) fn read(&mut self, register: u8) -> u8 {
        self.0.read(register)
    }

    /// Writes a register; gives the byte that this sends.
    pub(crate) fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        // Neither a `Line` nor a vector can fail.
        let _ = self.0.write(register, value);
        self.0.writer_mut().pop()
    }

    /// How many bytes of input can be taken now.
    pub(crate) fn room(&mut self) -> usize {
        if self.0.read(MODEM_CONTROL) & LOOPBACK != 0 {
            0
        } else {
            self.0.fifo_capacity()
        }
    }

    /// Takes input, at most [`Self::room`] bytes.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        // Fails only when the FIFO is full.
        let _ = self.0.enqueue_raw_bytes(bytes);
    }

    /// Whether the interrupt line is to be raised since the last question.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        self.0.interrupt_evt().0.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux's 8250 driver does to find out what there is (`autoconfig` in 8250_port.c): the
    /// order of accesses, and what it wants to see.
    #[test]
    fn the_probe_of_linux_finds_a_16550a() {
        let mut uart = Uart::new();
        let [ier, iir_fcr, lcr, mcr, msr] = [1, 2, 3, 4, 6];
        for (write, want) in [(0x00, 0x00), (0x0f, 0x0f)] {
            uart.write(ier, write);
            assert_eq!(uart.read(ier) & 0x0f, want, "interrupt enable");
        }
        uart.write(ier, 0);
        uart.write(mcr, LOOPBACK | 0x0a);
        assert_eq!(uart.read(msr) & 0xf0, 0x90, "loopback");
        uart.write(mcr, 0);
        uart.write(lcr, 0xbf);
        uart.write(iir_fcr, 0);
        uart.write(lcr, 0);
        uart.write(iir_fcr, 0x01);
        assert_eq!(uart.read(iir_fcr) >> 6, 3, "a FIFO that works");
        for extended in [0x80, 0xbf] {
            uart.write(lcr, extended);
            assert_ne!(uart.read(iir_fcr), 0, "no 16650's extended features");
        }
        for divisor_access in [0, 0x80] {
            uart.write(lcr, divisor_access);
            uart.write(iir_fcr, 0x21);
            assert_eq!(uart.read(iir_fcr) & 0xe0, 0xc0, "no 16750's FIFO");
        }
        uart.write(lcr, 0);
        uart.write(ier, 0x40);
        assert_eq!(uart.read(ier) & 0x40, 0, "no XScale");
    }

    #[test]
    fn in_loopback_what_is_sent_comes_back_and_the_line_is_not_listened_to() {
        let mut uart = Uart::new();
        uart.write(MODEM_CONTROL, LOOPBACK);
        assert_eq!((uart.write(0, b'x'), uart.room()), (None, 0));
        assert_eq!(uart.read(0), b'x');
        uart.write(MODEM_CONTROL, 0);
        assert_eq!((uart.write(0, b'y'), uart.room()), (Some(b'y'), FIFO));
    }

    #[test]
    fn input_the_guest_has_not_read_interrupts_it_again_after_a_load() {
        let mut uart = Uart::new();
        uart.write(1, ENABLE_RECEIVED);
        uart.receive(b"a");
        assert!(uart.take_interrupt());
        assert_eq!(uart.read(2) & 0x0f, PENDING_RECEIVED);
        assert_eq!(uart.read(2) & 0x0f, PENDING_NONE);
        let state = uart.state();
        let mut loaded = Uart::from_state(&state).unwrap();
        assert_eq!(loaded.state(), state);
        assert!(loaded.take_interrupt());
        assert!(!loaded.take_interrupt());
        assert_eq!(loaded.read(2) & 0x0f, PENDING_RECEIVED);
    }

    #[test]
    fn a_chip_with_nothing_pending_raises_nothing_after_a_load() {
        let mut uart = Uart::new();
        uart.write(1, 0x0f);
        uart.read(2);
        assert!(uart.take_interrupt());
        assert!(!Uart::from_state(&uart.state()).unwrap().take_interrupt());
    }
}

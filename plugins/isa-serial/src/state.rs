//! The vmstate section `serial`, version 1, and its subsection `serial/unsent`, version 1.

use baton_plugin_api::{Error, Result};
use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialState;

use crate::output::UNSENT_MAX;
use crate::uart::{FIFO, PENDING_NONE, PENDING_RECEIVED, PENDING_SENT, Uart};

/// Line status: input waits.
const DATA_READY: u8 = 0x01;
/// Line status: whatever was sent has left the chip, which is always so here.
const ALL_SENT: u8 = 0x60;
/// Interrupt enable: the bits a 16550A has.
const INTERRUPTS: u8 = 0x0f;

/// Every register by its name in the data sheet, and the input FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialSection {
    pub(crate) divisor_low: u8,
    pub(crate) divisor_high: u8,
    pub(crate) interrupt_enable: u8,
    pub(crate) interrupt_identification: u8,
    pub(crate) line_control: u8,
    pub(crate) line_status: u8,
    pub(crate) modem_control: u8,
    pub(crate) modem_status: u8,
    pub(crate) scratch: u8,
    #[serde(with = "serde_bytes")]
    pub(crate) input: Vec<u8>,
}

/// What the guest has sent that has not left the VMM; needed when there is any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnsentSection {
    #[serde(with = "serde_bytes")]
    pub(crate) bytes: Vec<u8>,
}

impl UnsentSection {
    pub(crate) fn checked(self) -> Result<Vec<u8>> {
        if self.bytes.len() > UNSENT_MAX {
            return Err(too_long("unsent output", self.bytes.len(), UNSENT_MAX));
        }
        Ok(self.bytes)
    }
}

fn too_long(what: &str, len: usize, max: usize) -> Error {
    let text = format!("{len} bytes of {what}, at most {max} fit; the state is damaged");
    Error::state(text)
}

impl SerialSection {
    pub(crate) fn new(uart: &Uart) -> Self {
        let state = uart.state();
        Self {
            divisor_low: state.baud_divisor_low,
            divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

impl TryFrom<SerialSection> for Uart {
    type Error = Error;

    fn try_from(s: SerialSection) -> Result<Self> {
        let not_one = |what: &str, value: u8| {
            let text = format!("{value:#04x} is no {what} of this UART; the state is damaged");
            Err(Error::state(text))
        };
        if s.interrupt_enable & !INTERRUPTS != 0 {
            return not_one("interrupt enable register", s.interrupt_enable);
        }
        const BOTH: u8 = PENDING_SENT | PENDING_RECEIVED;
        if !matches!(
            s.interrupt_identification,
            PENDING_NONE | PENDING_SENT | PENDING_RECEIVED | BOTH
        ) {
            return not_one(
                "interrupt identification register",
                s.interrupt_identification,
            );
        }
        let waiting = if s.input.is_empty() { 0 } else { DATA_READY };
        if s.line_status != ALL_SENT | waiting {
            return not_one("line status register", s.line_status);
        }
        let received = s.input.len();
        Uart::from_state(&SerialState {
            baud_divisor_low: s.divisor_low,
            baud_divisor_high: s.divisor_high,
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            in_buffer: s.input,
        })
        .ok_or_else(|| too_long("input", received, FIFO))
    }
}

//! The vmstate section `edu`, version 1.

use baton_plugin_api::Result;
use baton_plugin_api::pci::{Function, FunctionState};
use baton_plugin_api::serde::{Deserialize, Serialize};

use crate::registers::Registers;

/// The function and every register by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "baton_plugin_api::serde", deny_unknown_fields)]
pub(crate) struct EduSection {
    pub(crate) function: FunctionState,
    pub(crate) liveness: u32,
    pub(crate) factorial: u32,
    pub(crate) status: u32,
    pub(crate) interrupts: u32,
    pub(crate) dma_source: u64,
    pub(crate) dma_destination: u64,
    pub(crate) dma_count: u64,
    pub(crate) dma_command: u64,
    pub(crate) dma_buffer: Vec<u8>,
}

impl EduSection {
    pub(crate) fn new(function: &Function, registers: &Registers) -> Self {
        Self {
            function: function.state(),
            liveness: registers.liveness,
            factorial: registers.factorial,
            status: registers.status,
            interrupts: registers.interrupts,
            dma_source: registers.source,
            dma_destination: registers.destination,
            dma_count: registers.count,
            dma_command: registers.command,
            dma_buffer: registers.buffer.clone(),
        }
    }

    /// The function's part, which it checks itself, and the registers.
    pub(crate) fn checked(self) -> Result<(FunctionState, Registers)> {
        let registers = Registers {
            liveness: self.liveness,
            factorial: self.factorial,
            status: self.status,
            interrupts: self.interrupts,
            source: self.dma_source,
            destination: self.dma_destination,
            count: self.dma_count,
            command: self.dma_command,
            buffer: self.dma_buffer,
        };
        registers.check()?;
        Ok((self.function, registers))
    }
}

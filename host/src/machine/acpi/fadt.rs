//! The fixed hardware: power management registers, buttons, reset (ACPI 6.5 section 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::layout::{
    GPE0_LENGTH, GPE0_PORT, PM_TIMER_PORT, PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT,
    RESET_VALUE, SCI,
};

/// Bytes of the PM1 event block: status, then enable, of 16 bits each.
pub(super) const PM1_EVENT_LENGTH: u8 = 4;
/// Bytes of PM1 control.
pub(super) const PM1_CONTROL_LENGTH: u8 = 2;
/// Bytes of the PM timer.
pub(super) const PM_TIMER_LENGTH: u8 = 4;

/// IAPC_BOOT_ARCH (ACPI 6.5 table 5.11): there are legacy devices on the ISA bus, ...
const LEGACY_DEVICES: u16 = 1 << 0;
/// ... and no VGA to probe for. The bits for an 8042 keyboard controller, for absence of MSI and
/// for absence of a CMOS clock stay clear.
const NO_VGA: u16 = 1 << 2;

/// Latencies that mean "no such state": C2 above 100 us, C3 above 1000 us.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The FADT, revision 6.5, for tables at these guest addresses, which are below 4 GiB.
///
/// PWR_BUTTON and SLP_BUTTON stay clear, which makes both buttons fixed features: events of PM1.
/// FIX_RTC stays clear, since RTC_EN lets the clock's alarm wake the guest, and RTC_S4 too, since it does
/// not from S4, which there is not. TMR_VAL_EXT stays clear: 24 bits of the timer count, whatever the rest does. SMI_CMD is 0: the
/// machine is in ACPI mode from the start, and SCI_EN is always set.
pub(super) fn fadt(facs: u64, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::ResetRegSup);
    // Both widths: readers of old tables look at the first, and equal values are no conflict.
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.x_firmware_ctrl = facs.into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();

    fadt.sci_int = (SCI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm1_evt_len = PM1_EVENT_LENGTH;
    fadt.pm1_cnt_len = PM1_CONTROL_LENGTH;
    fadt.pm_tmr_len = PM_TIMER_LENGTH;
    fadt.x_pm1a_evt_blk = port(PM1_EVENT_PORT, PM1_EVENT_LENGTH, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(PM1_CONTROL_PORT, PM1_CONTROL_LENGTH, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(PM_TIMER_PORT, PM_TIMER_LENGTH, AccessSize::DwordAccess);

    fadt.gpe0_blk = u32::from(GPE0_PORT).into();
    fadt.gpe0_blk_len = GPE0_LENGTH;
    fadt.x_gpe0_blk = port(GPE0_PORT, GPE0_LENGTH, AccessSize::ByteAccess);

    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA).into();
    fadt.reset_reg = port(RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// A register of `length` bytes.
fn port(port: u16, length: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, length * 8, 0, access, port.into())
}

//! Where everything is in the guest's address spaces: the one place for these numbers.
//!
//! They are part of machine type `baton-1.0`: a state file relies on them, so a change here is a new
//! machine type.

/// The name a state stream carries.
pub const MACHINE_TYPE: &str = "baton-1.0";

/// RAM below this address; the rest continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM goes on above the hole for devices.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// The window for 32-bit memory BARs.
pub const MMIO32_START: u64 = LOW_RAM_END;
/// Its size.
pub const MMIO32_SIZE: u64 = ECAM_START - MMIO32_START;
/// Memory-mapped config space (PCI Firmware 3.0, ECAM) of bus 0.
pub const ECAM_START: u64 = 0xe000_0000;
/// The last bus that ECAM covers.
pub const ECAM_LAST_BUS: u8 = 0xff;
/// Its size: 1 MiB a bus.
pub const ECAM_SIZE: u64 = (ECAM_LAST_BUS as u64 + 1) << 20;

/// The window for 64-bit memory BARs begins behind RAM, at a multiple of this.
pub const MMIO64_ALIGN: u64 = 1 << 30;
/// Its size: 32 GiB, so that it fits hosts with 39 address bits.
pub const MMIO64_SIZE: u64 = 32 << 30;

/// The window for port BARs.
pub const PORT_WINDOW_START: u16 = 0xc000;
/// Its size.
pub const PORT_WINDOW_SIZE: u16 = 0x3000;

/// The I/O APIC of KVM's irqchip.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs of KVM's irqchip.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages that KVM wants on Intel hosts (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM wants on Intel hosts (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// ACPI tables lie in the BIOS area, where a guest also finds the RSDP by scanning.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// The end of the area for ACPI tables.
pub const ACPI_TABLES_END: u64 = 0x10_0000;

/// The FACS among them, in which a guest that sleeps has left where it goes on: the process that wakes
/// it need not be the one that made the tables.
pub const FACS: u64 = ACPI_TABLES + 0x40;

/// Kernels are loaded from here on.
pub const KERNEL_START: u64 = 0x10_0000;

/// PM1 event registers (ACPI 6.5 section 4.8.3).
pub const PM1_EVENT_PORT: u16 = 0x600;
/// PM1 control register.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// Power management timer.
pub const PM_TIMER_PORT: u16 = 0x608;
/// General-purpose event registers, block 0 (ACPI 6.5 section 4.8.4.1): status, then enable.
pub const GPE0_PORT: u16 = 0x620;
/// Bytes of that block.
pub const GPE0_LENGTH: u8 = 4;
/// The event of block 0 that tells of PCI hot-plug, as in QEMU.
pub const GPE_PCI_HOTPLUG: u8 = 1;
/// The registers of PCI hot-plug, for the methods of the DSDT.
pub const PCI_HOTPLUG_PORT: u16 = 0xae00;
/// How many ports they take.
pub const PCI_HOTPLUG_LENGTH: u8 = 16;
/// The reset control register of PCI chipsets, also ACPI's reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// What the guest writes there to reset the machine.
pub const RESET_VALUE: u8 = 0x06;
/// The sleep type of S3 in PM1 control.
pub const SLEEP_TYPE_S3: u8 = 3;
/// The sleep type of S5.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The system control interrupt.
pub const SCI: u32 = 9;

/// How many interrupts the I/O APIC takes.
pub const IOAPIC_PINS: u32 = 24;
/// The first interrupt number that MSI routes use.
pub const FIRST_MSI_GSI: u32 = IOAPIC_PINS;

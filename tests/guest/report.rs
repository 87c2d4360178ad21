//! The report page of the test guest, as `report.h` lays it out and explains it.

// Every test binary that includes this uses a part of it.
#![allow(dead_code, unreachable_pub)]

/// Guest-physical address.
pub const ADDRESS: u64 = 0x20_0000;
pub const SIZE: usize = 0x5_0000;
pub const VERSION: u64 = 1;
pub const MAGIC: [u8; 8] = *b"BATONRPT";

pub const TICK_RING: usize = 4096;
pub const BLOCK_LIMIT: usize = 65536;
pub const BLOCK_SLOTS: usize = 4;
pub const RNG_LIMIT: usize = 32;
pub const CPU_LIMIT: usize = 32;

/// In [`BLK_SEQUENCE`]: a write of the block is in flight, or failed.
pub const BLOCK_IN_FLIGHT: u64 = 0x8000_0000;

/// Values of [`STATE`].
pub const STATE_BOOTING: u64 = 1;
pub const STATE_RUNNING: u64 = 2;
pub const STATE_FAULT: u64 = 3;

/// Values of [`BLK_STATE`].
pub const BLK_ABSENT: u64 = 0;
pub const BLK_RUNNING: u64 = 1;
pub const BLK_DRAINING: u64 = 2;
pub const BLK_VERIFYING: u64 = 3;
pub const BLK_PAUSED: u64 = 4;

/// What [`Report::tell`] can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Control {
    ResetGap = 1,
    Quiesce = 2,
    PauseDisk = 3,
    ResumeDisk = 4,
}

/// What a disk request in flight does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Flush,
}

/// A disk request in flight; `sequence` is being written, or expected by the read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkSlot {
    pub operation: Operation,
    pub block: u32,
    pub sequence: u32,
}

/// A number in the report: its name in `report.h`, its byte offset, its width in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub width: usize,
}

/// A table of numbers in the report; `width` is that of one entry in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    pub name: &'static str,
    pub offset: usize,
    pub width: usize,
    pub entries: usize,
}

macro_rules! fields {
    ($($constant:ident $name:ident $offset:literal $type:ty,)*) => {
        $(pub const $constant: Field = Field {
            name: stringify!($name),
            offset: $offset,
            width: size_of::<$type>(),
        };)*

        /// All of them, in the order of the report.
        pub const FIELDS: &[Field] = &[$($constant),*];
    };
}

fields! {
    VERSION_FIELD version 0x008 u32,
    SIZE_FIELD size 0x00c u32,
    STATE state 0x010 u32,
    BOOTS boots 0x014 u32,
    CONTROL control 0x018 u64,
    CONTROL_COUNT control_count 0x020 u64,
    TSC_HZ tsc_hz 0x028 u64,
    LAPIC_HZ lapic_hz 0x030 u64,
    TIMER_HZ timer_hz 0x038 u64,
    RAM_START ram_start 0x040 u64,
    RAM_LEN ram_len 0x048 u64,
    LOOPS loops 0x050 u64,
    PASSES passes 0x058 u64,
    POSITION position 0x060 u64,
    RAM_ERRORS ram_errors 0x068 u64,
    TICKS ticks 0x070 u64,
    LAST_TICK_TSC last_tick_tsc 0x078 u64,
    MAX_GAP_TSC max_gap_tsc 0x080 u64,
    MAX_GAP_END_TSC max_gap_end_tsc 0x088 u64,
    PREV_GAP_TSC prev_gap_tsc 0x090 u64,
    TSC_BACKWARDS tsc_backwards 0x098 u64,
    IRQ_SERIAL irq_serial 0x0a0 u64,
    IRQ_BLK irq_blk 0x0a8 u64,
    IRQ_RNG irq_rng 0x0b0 u64,
    IRQ_SPURIOUS irq_spurious 0x0b8 u64,
    IRQ_OTHER irq_other 0x0c0 u64,
    SERIAL_RX serial_rx 0x0c8 u64,
    SERIAL_TX serial_tx 0x0d0 u64,
    SERIAL_LINES serial_lines 0x0d8 u64,
    SERIAL_OVERRUNS serial_overruns 0x0e0 u64,
    BLK_STATE blk_state 0x0e8 u32,
    BLK_BLOCKS blk_blocks 0x0ec u32,
    BLK_RUN blk_run 0x0f0 u64,
    BLK_WRITES blk_writes 0x0f8 u64,
    BLK_READS blk_reads 0x100 u64,
    BLK_FLUSHES blk_flushes 0x108 u64,
    BLK_ERRORS blk_errors 0x110 u64,
    BLK_MISMATCHES blk_mismatches 0x118 u64,
    BLK_STALLS blk_stalls 0x120 u64,
    BLK_VERIFIED blk_verified 0x128 u64,
    BLK_BAD blk_bad 0x130 u64,
    RNG_DEVICES rng_devices 0x138 u64,
    RNG_REQUESTS rng_requests 0x140 u64,
    RNG_BYTES rng_bytes 0x148 u64,
    RNG_ERRORS rng_errors 0x150 u64,
    RNG_STALLS rng_stalls 0x158 u64,
    CPUS cpus 0x160 u64,
    ENTRY_TSC entry_tsc 0x168 u64,
    UP_TSC up_tsc 0x170 u64,
    SLEEPS sleeps 0x178 u64,
    WAKES wakes 0x180 u64,
    WAKE_ERRORS wake_errors 0x188 u64,
    WAKE_STATUS wake_status 0x190 u64,
}

macro_rules! arrays {
    ($($constant:ident $name:ident $offset:literal $width:literal $entries:ident,)*) => {
        $(pub const $constant: Array = Array {
            name: stringify!($name),
            offset: $offset,
            width: $width,
            entries: $entries,
        };)*

        pub const ARRAYS: &[Array] = &[$($constant),*];
    };
}

arrays! {
    CPU_LOOPS cpu_loops 0x00400 8 CPU_LIMIT,
    CPU_TICKS cpu_ticks 0x00600 8 CPU_LIMIT,
    RNG_DONE rng_done 0x00800 8 RNG_LIMIT,
    BLK_SLOT blk_slot 0x00900 16 BLOCK_SLOTS,
    TICK_TSC tick_tsc 0x01000 8 TICK_RING,
    BLK_SEQUENCE blk_sequence 0x10000 4 BLOCK_LIMIT,
}

/// The report in a guest's memory. Every read is a fresh look at memory that changes.
#[derive(Debug)]
pub struct Report {
    base: *mut u8,
}

// SAFETY: the page is shared with a guest that runs beside every thread anyway; all access is by
// single aligned volatile loads and stores.
unsafe impl Send for Report {}

impl Report {
    /// # Safety
    ///
    /// `ram` is where guest-physical address 0 is mapped, page-aligned and readable up to
    /// `ADDRESS + SIZE` for as long as the report is used; writable, too, if [`Report::tell`] is.
    pub unsafe fn new(ram: *mut u8) -> Self {
        // SAFETY: the caller maps up to `ADDRESS + SIZE`.
        let base = unsafe { ram.add(ADDRESS as usize) };
        Self { base }
    }

    /// Whether a guest has begun to report, in the layout of this file.
    pub fn is_there(&self) -> bool {
        self.read(0, 8) == u64::from_le_bytes(MAGIC) && self.get(VERSION_FIELD) == VERSION
    }

    pub fn get(&self, field: Field) -> u64 {
        self.read(field.offset, field.width)
    }

    /// An entry of an array of plain numbers.
    ///
    /// # Panics
    ///
    /// When `index` is not in the array, or it is [`BLK_SLOT`].
    pub fn entry(&self, array: Array, index: usize) -> u64 {
        assert!(
            index < array.entries,
            "{}[{index}] of {}",
            array.name,
            array.entries
        );
        self.read(array.offset + index * array.width, array.width)
    }

    /// The disk requests in flight.
    pub fn blk_slots(&self) -> Vec<BlkSlot> {
        (0..BLOCK_SLOTS)
            .filter_map(|index| {
                let word = |n: usize| {
                    self.read(BLK_SLOT.offset + index * BLK_SLOT.width + 4 * n, 4) as u32
                };
                let operation = match word(0) {
                    1 => Operation::Read,
                    2 => Operation::Write,
                    3 => Operation::Flush,
                    _ => return None,
                };
                Some(BlkSlot {
                    operation,
                    block: word(1),
                    sequence: word(2),
                })
            })
            .collect()
    }

    /// Gives the guest an order; false while it has not taken the last one.
    pub fn tell(&self, control: Control) -> bool {
        if self.get(CONTROL) != 0 {
            return false;
        }
        // SAFETY: inside the mapping that `new` was promised, and aligned.
        unsafe {
            self.base
                .add(CONTROL.offset)
                .cast::<u64>()
                .write_volatile((control as u64).to_le());
        }
        true
    }

    fn read(&self, offset: usize, width: usize) -> u64 {
        assert!(offset.is_multiple_of(width) && offset + width <= SIZE);
        // SAFETY: inside the mapping that `new` was promised, and aligned, as asserted.
        unsafe {
            let at = self.base.add(offset);
            match width {
                4 => u64::from(u32::from_le(at.cast::<u32>().read_volatile())),
                8 => u64::from_le(at.cast::<u64>().read_volatile()),
                _ => panic!("no number of the report is {width} bytes wide"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("report.h");

    /// The arguments of every line of `report.h` that begins with `call(`.
    fn calls<'a>(call: &'a str) -> impl Iterator<Item = Vec<&'static str>> + 'a {
        HEADER.lines().filter_map(move |line| {
            let arguments = line.trim_start().strip_prefix(call)?.strip_prefix('(')?;
            Some(
                arguments
                    .split(')')
                    .next()?
                    .split(',')
                    .map(str::trim)
                    .collect(),
            )
        })
    }

    fn number(text: &str) -> usize {
        text.strip_prefix("0x")
            .map_or_else(|| text.parse(), |hex| usize::from_str_radix(hex, 16))
            .unwrap_or_else(|_| panic!("{text} is no number"))
    }

    fn width(c_type: &str) -> usize {
        match c_type {
            "uint32_t" => 4,
            "uint64_t" => 8,
            "struct blk_slot" => 16,
            _ => panic!("{c_type} has no width here"),
        }
    }

    fn defined(name: &str) -> &'static str {
        HEADER
            .lines()
            .find_map(|line| {
                let mut words = line.split_whitespace();
                let found = words.next() == Some("#define") && words.next() == Some(name);
                found.then(|| words.next()).flatten()
            })
            .unwrap_or_else(|| panic!("report.h does not define {name}"))
    }

    #[test]
    fn fields_are_those_of_the_header() {
        let header: Vec<_> = calls("F")
            .map(|c| (number(c[0]), width(c[1]), c[2]))
            .collect();
        let here: Vec<_> = FIELDS.iter().map(|f| (f.offset, f.width, f.name)).collect();
        assert_eq!(here, header);
    }

    #[test]
    fn arrays_are_those_of_the_header() {
        let header: Vec<_> = calls("A")
            .map(|c| (number(c[0]), width(c[1]), c[2]))
            .collect();
        let here: Vec<_> = ARRAYS.iter().map(|a| (a.offset, a.width, a.name)).collect();
        assert_eq!(here, header);
    }

    #[test]
    fn constants_are_those_of_the_header() {
        assert_eq!(ADDRESS as usize, number(defined("REPORT_ADDRESS")));
        assert_eq!(SIZE, number(defined("REPORT_SIZE")));
        assert_eq!(VERSION as usize, number(defined("REPORT_VERSION")));
        assert_eq!(TICK_RING, number(defined("TICK_RING")));
        assert_eq!(BLOCK_LIMIT, number(defined("BLOCK_LIMIT")));
        assert_eq!(BLOCK_SLOTS, number(defined("BLOCK_SLOTS")));
        assert_eq!(RNG_LIMIT, number(defined("RNG_LIMIT")));
        assert_eq!(defined("CPU_LIMIT"), "MAX_PROCESSORS");
        let limit = format!("#define MAX_PROCESSORS {CPU_LIMIT}");
        assert!(
            include_str!("processors.h")
                .lines()
                .any(|line| line == limit)
        );
    }

    #[test]
    fn nothing_overlaps() {
        let fields = FIELDS.iter().map(|f| (f.offset, f.width));
        let arrays = ARRAYS.iter().map(|a| (a.offset, a.width * a.entries));
        let mut pieces: Vec<_> = fields.chain(arrays).collect();
        pieces.sort_unstable();
        let mut end = MAGIC.len();
        for (offset, length) in pieces {
            assert!(offset >= end, "{offset:#x} begins before {end:#x}");
            end = offset + length;
        }
        assert!(end <= SIZE);
    }

    #[test]
    fn values_are_read_where_the_guest_writes_them() {
        let mut ram = vec![0_u64; (ADDRESS as usize + SIZE) / 8];
        let page = ADDRESS as usize / 8;
        ram[page] = u64::from_le_bytes(MAGIC);
        ram[page + 1] = VERSION;
        ram[page + LOOPS.offset / 8] = 7;
        ram[page + BLK_SLOT.offset / 8] = 2 | 5 << 32;
        ram[page + BLK_SLOT.offset / 8 + 1] = 9;
        // SAFETY: the vector is as long as the mapping must be, and outlives the report.
        let report = unsafe { Report::new(ram.as_mut_ptr().cast()) };

        assert!(report.is_there());
        assert_eq!(report.get(LOOPS), 7);
        let write = BlkSlot {
            operation: Operation::Write,
            block: 5,
            sequence: 9,
        };
        assert_eq!(report.blk_slots(), [write]);
        assert!(report.tell(Control::Quiesce));
        assert_eq!(report.get(CONTROL), 2);
        assert!(!report.tell(Control::ResetGap));
    }
}

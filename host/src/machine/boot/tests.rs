//! Made-up kernels, honest and hostile, through the loader; what lands in RAM is read back.

use std::ffi::CString;
use std::io::Write;

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{ByteValued, Bytes};

use super::low_memory::COMMAND_LINE;
use super::*;

const MIB: usize = 1 << 20;
const RSDP: u64 = 0xe_0000;

fn file(content: &[u8]) -> File {
    let name = CString::new("kernel").expect("no NUL");
    let mut file =
        File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.write_all(content).expect("written");
    file
}

fn kernel(content: &[u8]) -> Kernel {
    let cmdline = "console=ttyS0".to_owned();
    Kernel {
        image: file(content),
        name: "vmlinuz".to_owned(),
        initrd: None,
        cmdline,
    }
}

fn with_initrd(content: &[u8], initrd: &[u8]) -> Kernel {
    Kernel {
        initrd: Some((file(initrd), "initrd".to_owned())),
        ..kernel(content)
    }
}

struct Ram {
    ranges: Vec<(GuestAddress, usize)>,
    memory: GuestMemoryMmap<()>,
}

fn ram(size: usize) -> Ram {
    let ranges = vec![(GuestAddress(0), size)];
    let memory = GuestMemoryMmap::from_ranges(&ranges).expect("RAM");
    Ram { ranges, memory }
}

impl Ram {
    fn load(&self, kernel: &Kernel) -> Result<Entry, Error> {
        kernel.load(&self.memory, &self.ranges, RSDP)
    }

    fn read<T: ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).expect("in RAM")
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in RAM");
        bytes
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

const CODE: &[u8] = b"the kernel's code";

/// A bzImage of protocol 2.15, with one setup sector and 4 KiB of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 4096];
    image[0x1f1] = 1; // setup_sects
    put(&mut image, 0x1f4, &256u32.to_le_bytes()); // syssize
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]); // boot_flag, jump
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes()); // version
    image[0x211] = 1; // loadflags
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes()); // code32_start
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    image[0x234] = 1; // relocatable_kernel
    put(&mut image, 0x236, &1u16.to_le_bytes()); // xloadflags
    put(&mut image, 0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes()); // pref_address
    put(&mut image, 0x260, &0x10_0000u32.to_le_bytes()); // init_size
    put(&mut image, 1024 + 0x200, CODE);
    image
}

/// A PVH kernel: a note, code at 2 MiB, and 64 KiB of BSS.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 0x3000];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes()); // e_phoff
    put(&mut image, 54, &56u16.to_le_bytes()); // e_phentsize
    put(&mut image, 56, &2u16.to_le_bytes()); // e_phnum
    segment(&mut image, 0, 4, [0x1000, 0, 24, 24]);
    segment(&mut image, 1, 1, [0x2000, 0x20_0000, 0x1000, 0x1_1000]);
    put(&mut image, 0x1000, &[4, 0, 0, 0, 8, 0, 0, 0, 0x12, 0, 0, 0]);
    put(&mut image, 0x100c, b"Xen\0\x10\0\x20\0");
    put(&mut image, 0x2010, CODE);
    image
}

fn segment(image: &mut [u8], index: usize, kind: u32, [offset, address, file, ram]: [u64; 4]) {
    let header = 64 + 56 * index;
    put(image, header, &kind.to_le_bytes());
    for (at, value) in [(8, offset), (24, address), (32, file), (40, ram)] {
        put(image, header + at, &value.to_le_bytes());
    }
}

#[test]
fn bzimage_gets_a_zero_page_and_its_64_bit_entry() {
    let ram = ram(64 * MIB);
    let entry = ram.load(&with_initrd(&bzimage(), b"files")).expect("loads");
    assert_eq!(
        entry,
        Entry::Linux64 {
            rip: 0x10_0200,
            zero_page: 0x3000
        }
    );
    assert_eq!(ram.bytes(0x10_0200, CODE.len()), CODE);

    let page: boot_params = ram.read(0x3000);
    let header = page.hdr;
    assert_eq!(
        (header.type_of_loader, { header.cmd_line_ptr }),
        (0xff, 0x2_0000)
    );
    assert_eq!({ page.acpi_rsdp_addr }, RSDP);
    assert_eq!(
        ({ header.ramdisk_image }, { header.ramdisk_size }),
        (0x3ff_f000, 5)
    );
    assert_eq!(ram.bytes(0x3ff_f000, 5), b"files");
    assert_eq!(ram.bytes(COMMAND_LINE, 14), b"console=ttyS0\0");
    assert_eq!(page.e820_entries, 5);
    let third = page.e820_table[2];
    assert_eq!(
        ({ third.addr }, { third.size }, { third.r#type }),
        (0x10_0000, 63 << 20, 1)
    );
    // What the kernel's build put into its header is still there.
    assert_eq!(
        ({ header.version }, { header.init_size }),
        (0x20f, 0x10_0000)
    );
}

#[test]
fn pvh_kernel_gets_a_start_info() {
    let ram = ram(64 * MIB);
    let entry = ram.load(&with_initrd(&elf(), b"files")).expect("loads");
    assert_eq!(
        entry,
        Entry::Pvh {
            rip: 0x20_0010,
            start_info: 0x2000
        }
    );
    assert_eq!(ram.bytes(0x20_0010, CODE.len()), CODE);

    let info: hvm_start_info = ram.read(0x2000);
    assert_eq!(
        (info.magic, info.version, info.rsdp_paddr),
        (0x336e_c578, 1, RSDP)
    );
    assert_eq!(ram.bytes(info.cmdline_paddr, 14), b"console=ttyS0\0");
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = ram.read(info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (0x3ff_f000, 5));
    assert_eq!(ram.bytes(module.paddr, 5), b"files");
    assert_eq!(info.memmap_entries, 5);
    let last: hvm_memmap_table_entry = ram.read(info.memmap_paddr + 4 * 24);
    assert_eq!((last.addr, last.size, last.type_), (0xfffb_c000, 0x4000, 2));
}

#[test]
fn pvh_kernel_without_initrd_is_told_of_no_module() {
    let ram = ram(64 * MIB);
    ram.load(&kernel(&elf())).expect("loads");
    let info: hvm_start_info = ram.read(0x2000);
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
}

#[test]
fn second_load_finds_the_files_and_clears_what_the_first_boot_left() {
    for (image, code) in [(bzimage(), 0x10_0200), (elf(), 0x20_0010)] {
        let ram = ram(64 * MIB);
        let kernel = with_initrd(&image, b"files");
        let first = ram.load(&kernel).expect("loads");
        let tables = ram.bytes(0, 0x3_0000);
        ram.memory
            .write_slice(&vec![0xaa; MIB], GuestAddress(code))
            .expect("scribbled");
        assert_eq!(ram.load(&kernel).expect("loads again"), first);
        assert_eq!(ram.bytes(code, CODE.len()), CODE);
        assert_eq!(ram.bytes(0, 0x3_0000), tables);
    }
    let ram = ram(64 * MIB);
    ram.memory
        .write_slice(&vec![0xaa; MIB], GuestAddress(0x20_0000))
        .expect("scribbled");
    ram.load(&kernel(&elf())).expect("loads");
    assert!(
        ram.bytes(0x20_1000, 0x1_0000).iter().all(|&b| b == 0),
        "BSS"
    );
    assert_eq!(ram.bytes(0x21_1000, 1), [0xaa], "RAM behind it");
}

#[test]
fn file_that_is_no_kernel_is_refused() {
    let ram = ram(64 * MIB);
    for content in [&b""[..], b"MZ", &[0; 4096], b"\x7fEL"] {
        let error = ram
            .load(&kernel(content))
            .expect_err("no kernel")
            .to_string();
        assert_eq!(
            error,
            "'vmlinuz' is neither a bzImage nor an ELF kernel with a PVH entry point"
        );
    }
}

#[test]
fn elf_without_a_pvh_note_is_told_so() {
    let mut image = elf();
    image[0x1008] = 1;
    let error = ram(64 * MIB)
        .load(&kernel(&image))
        .expect_err("no note")
        .to_string();
    assert!(
        error.contains("an ELF file without a PVH entry point"),
        "{error}"
    );
}

#[test]
fn kernel_that_does_not_fit_says_what_it_needs() {
    // The bzImage runs at 16 MiB and wants one more; the ELF ends behind 2 MiB.
    for (image, size, needed) in [(bzimage(), 16, 17), (elf(), 2, 3)] {
        let error = ram(size * MIB)
            .load(&kernel(&image))
            .expect_err("too large")
            .to_string();
        let expected = format!("needs {needed} MiB of RAM below 3 GiB, and the guest has {size}");
        assert!(error.contains(&expected), "{error}");
        ram(needed * MIB)
            .load(&kernel(&image))
            .expect("fits exactly what the text asks for");
    }
}

#[test]
fn initrd_that_does_not_fit_says_what_both_need() {
    for (image, size, needed) in [(bzimage(), 18, 19), (elf(), 4, 5)] {
        let initrd = with_initrd(&image, &vec![1; 2 * MIB]);
        let error = ram(size * MIB)
            .load(&initrd)
            .expect_err("too large")
            .to_string();
        let expected = format!("need {needed} MiB of RAM below 3 GiB, and the guest has {size}");
        assert!(
            error.starts_with("Initrd 'initrd'") && error.contains(&expected),
            "{error}"
        );
        ram(needed * MIB)
            .load(&initrd)
            .expect("fits exactly what the text asks for");
    }
}

#[test]
fn command_line_is_bounded_by_what_the_kernel_takes() {
    let ram = ram(64 * MIB);
    for image in [bzimage(), elf()] {
        let mut kernel = kernel(&image);
        kernel.cmdline = "x".repeat(2047);
        ram.load(&kernel).expect("the longest");
        kernel.cmdline.push('x');
        let error = ram.load(&kernel).expect_err("too long").to_string();
        let expected = "Kernel command line is 2048 bytes long, and 'vmlinuz' takes at most 2047";
        assert_eq!(error, expected);
        kernel.cmdline = "a\0b".to_owned();
        assert!(matches!(
            ram.load(&kernel),
            Err(Error::CommandLineNul { offset: 1 })
        ));
    }
    let mut image = bzimage();
    put(&mut image, 0x238, &u32::MAX.to_le_bytes());
    let mut kernel = kernel(&image);
    kernel.cmdline = "x".repeat(70_000);
    assert!(matches!(
        ram.load(&kernel),
        Err(Error::CommandLineTooLong { limit: 0xffff, .. })
    ));
}

/// Changes a sound image at an offset, and expects a refusal with this text.
fn refuses(sound: &[u8], offset: usize, value: &[u8], text: &str) {
    let mut image = sound.to_vec();
    put(&mut image, offset, value);
    let error = ram(64 * MIB)
        .load(&kernel(&image))
        .expect_err(text)
        .to_string();
    assert!(
        error.contains(text) && error.contains("'vmlinuz'"),
        "{offset:#x}: {error}"
    );
}

#[test]
fn hostile_bzimage_headers_are_refused() {
    let image = bzimage();
    refuses(
        &image,
        0x206,
        &0x020bu16.to_le_bytes(),
        "boot protocol is 2.11",
    );
    refuses(&image, 0x211, &[0], "zImage");
    refuses(&image, 0x236, &[0], "32-bit kernel");
    refuses(&image, 0x1f1, &[255], "its header promises");
    refuses(
        &image,
        0x1f4,
        &u32::MAX.to_le_bytes(),
        "its header promises",
    );
    for alignment in [0u32, 3, u32::MAX, 1 << 31] {
        refuses(&image, 0x230, &alignment.to_le_bytes(), "its alignment is");
    }
    refuses(
        &image,
        0x258,
        &u64::MAX.to_le_bytes(),
        "its preferred address is",
    );
    refuses(&image, 0x258, &(u64::MAX >> 1).to_le_bytes(), "below 3 GiB");
    refuses(&image, 0x260, &u32::MAX.to_le_bytes(), "needs 4112 MiB");
    refuses(&image[..0x250], 0x1f1, &[1], "ends within the setup header");
    refuses(&image[..1024], 0x1f4, &[0; 4], "its header promises");
    let mut image = with_initrd(&bzimage(), b"files");
    let mut low = bzimage();
    put(&mut low, 0x22c, &0u32.to_le_bytes());
    image.image = file(&low);
    assert!(matches!(
        ram(64 * MIB).load(&image),
        Err(Error::InitrdBeyondLimit { .. })
    ));
}

#[test]
fn hostile_elf_headers_are_refused() {
    let image = elf();
    let header = 64 + 56;
    refuses(&image, 4, &[1], "another processor");
    refuses(&image, 5, &[2], "another processor");
    refuses(&image, 18, &[3], "another processor");
    refuses(&image, 54, &[32], "segment headers of 32 bytes");
    refuses(&image, 56, &u16::MAX.to_le_bytes(), "65535 segment headers");
    refuses(&image, 56, &[0], "without a PVH entry point");
    for offset in [0x3000, u64::MAX, u64::MAX / 2 + 1] {
        refuses(
            &image,
            32,
            &offset.to_le_bytes(),
            "ends within the ELF segment headers",
        );
    }
    refuses(
        &image,
        header + 8,
        &u64::MAX.to_le_bytes(),
        "ends within its segment 1",
    );
    refuses(
        &image,
        header + 32,
        &u64::MAX.to_le_bytes(),
        "ends within its segment 1",
    );
    refuses(
        &image,
        64 + 8,
        &u64::MAX.to_le_bytes(),
        "ends within its segment 0",
    );
    refuses(
        &image,
        header + 40,
        &0xfffu64.to_le_bytes(),
        "sizes of its segment 1",
    );
    refuses(
        &image,
        header + 40,
        &u64::MAX.to_le_bytes(),
        "sizes of its segment 1",
    );
    refuses(
        &image,
        header + 40,
        &(1u64 << 40).to_le_bytes(),
        "needs 1048578 MiB",
    );
    refuses(
        &image,
        header + 24,
        &0xf_f000u64.to_le_bytes(),
        "below 1 MiB",
    );
    refuses(
        &image,
        header + 24,
        &0x40_0000u64.to_le_bytes(),
        "in none of its segments",
    );
    refuses(&image, 0x1004, &3u32.to_le_bytes(), "Cannot load");
    refuses(&image, 0x1000, &u32::MAX.to_le_bytes(), "Cannot load");
    refuses(
        &image,
        0x1000,
        &0xffff_fff0u32.to_le_bytes(),
        "without a PVH entry point",
    );
    refuses(&image[..60], 0, b"\x7f", "ends within the ELF header");
}

#[test]
fn fields_behind_the_headers_own_end_are_not_passed_on() {
    let mut image = bzimage();
    // The header ends before kernel_info_offset, where protocol 2.14 has ended.
    image[0x201] = 0x66;
    put(&mut image, 0x268, &[0xaa; 4]);
    let ram = ram(64 * MIB);
    ram.load(&kernel(&image)).expect("loads");
    let page: boot_params = ram.read(0x3000);
    let header = page.hdr;
    assert_eq!(
        ({ header.kernel_info_offset }, { header.init_size }),
        (0, 0x10_0000)
    );
}

#[test]
fn unreadable_file_is_named() {
    let folder = File::open("/").expect("the root");
    let broken = Kernel {
        image: folder,
        ..kernel(&[])
    };
    assert_eq!(
        ram(64 * MIB)
            .load(&broken)
            .expect_err("a folder")
            .to_string(),
        "Cannot read 'vmlinuz'"
    );
    let broken = Kernel {
        initrd: Some((File::open("/").expect("the root"), "initrd".to_owned())),
        ..kernel(&elf())
    };
    assert!(ram(64 * MIB).load(&broken).is_err());
}

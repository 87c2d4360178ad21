//! This program's own pages, mapped ahead of the blackout.
//!
//! Much of what runs inside a blackout runs there for the first time in its process: on the target
//! always. Each page of code it touches first would cost a fault, a hundred of them a good part of
//! a blackout.

use nix::libc;

/// linux/mman.h, since Linux 5.14; older kernels refuse it, and pages come by faults as ever.
const MADV_POPULATE_READ: i32 = 22;
const MADV_POPULATE_WRITE: i32 = 23;

/// Maps what this process has of its program and libraries. Changes no content.
pub fn warm_program() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, len, advice) in maps.lines().filter_map(wanted) {
        // SAFETY: populating touches no content, and a range that is gone meanwhile gives an error.
        unsafe { libc::madvise(start as *mut libc::c_void, len, advice) };
    }
}

/// What to do with a line of `/proc/PID/maps`: only private mappings of files, which are programs
/// and libraries; guest memory is not among them.
fn wanted(line: &str) -> Option<(usize, usize, i32)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let advice = match words.next()? {
        "r--p" | "r-xp" => MADV_POPULATE_READ,
        "rw-p" => MADV_POPULATE_WRITE,
        _ => return None,
    };
    let path = words.nth(3)?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let library = path.starts_with('/') && end - start < LARGEST;
    library.then_some((start, end - start, advice))
}

/// A mapping above this is no code of ours.
const LARGEST: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_mappings_of_files_are_wanted() {
        let code = "7f00-8f00 r-xp 00001000 08:01 123  /usr/lib/libc.so.6";
        assert_eq!(wanted(code), Some((0x7f00, 0x1000, MADV_POPULATE_READ)));
        let ram = "7f00-8f00 rw-s 00000000 00:01 123  /memfd:ram0 (deleted)";
        assert_eq!(wanted(ram), None);
        assert_eq!(wanted("7f00-8f00 rw-p 00000000 00:00 0 [heap]"), None);
    }
}

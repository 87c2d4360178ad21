//! The initial RAM disk: as high as the kernel can read it, out of the way of a kernel that grows
//! upward while it unpacks itself.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::error::{Error, mib_down, mib_up};

/// Initrds begin on a page, so that Linux can free all of it.
const PAGE: u64 = 4096;

/// What an initrd may occupy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// The kernel needs everything below.
    pub(super) kernel_end: u64,
    /// RAM ends here.
    pub(super) ram_end: u64,
    /// The kernel reads nothing from here on.
    pub(super) limit: u64,
}

/// Where an initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    /// The first address.
    pub(super) start: u64,
    /// How many bytes, at least one.
    pub(super) size: u64,
}

/// Reads the whole file to the top of `room`.
pub(super) fn load(
    memory: &GuestMemoryMmap<()>,
    file: &File,
    name: &str,
    room: Room,
) -> Result<Placed, Error> {
    let mut file = file;
    let read = |source| Error::Read {
        name: name.to_owned(),
        source,
    };
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    let placed = place(size, name, room)?;
    file.rewind().map_err(read)?;
    let length = usize::try_from(size).map_err(|e| read(std::io::Error::other(e)))?;
    memory
        .read_exact_volatile_from(GuestAddress(placed.start), &mut file, length)
        .map_err(|source| Error::ReadIntoRam {
            name: name.to_owned(),
            source,
        })?;
    Ok(placed)
}

fn place(size: u64, name: &str, room: Room) -> Result<Placed, Error> {
    if size == 0 {
        return Err(Error::InitrdEmpty {
            name: name.to_owned(),
        });
    }
    let bottom = room.kernel_end.next_multiple_of(PAGE);
    // Up to a page is lost where the end of the room is no multiple of a page away.
    let needed = bottom
        .saturating_add(size)
        .checked_next_multiple_of(PAGE)
        .unwrap_or(u64::MAX);
    let name = || name.to_owned();
    if needed > room.limit {
        let (needed, limit) = (mib_up(needed), mib_down(room.limit));
        return Err(Error::InitrdBeyondLimit {
            name: name(),
            needed,
            limit,
        });
    }
    if needed > room.ram_end {
        let (needed, available) = (mib_up(needed), mib_down(room.ram_end));
        return Err(Error::InitrdTooLarge {
            name: name(),
            needed,
            available,
        });
    }
    let start = (room.ram_end.min(room.limit) - size) / PAGE * PAGE;
    Ok(Placed { start, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        kernel_end: 0x20_0001,
        ram_end: 0x100_0000,
        limit: 0x8000_0000,
    };

    #[test]
    fn initrd_ends_at_the_top_of_ram_on_a_page() {
        let placed = place(0x1801, "i", ROOM).expect("it fits");
        assert_eq!(
            placed,
            Placed {
                start: 0xff_e000,
                size: 0x1801
            }
        );
    }

    #[test]
    fn initrd_stays_below_what_the_kernel_can_read() {
        let placed = place(
            0x1000,
            "i",
            Room {
                limit: 0x80_0000,
                ..ROOM
            },
        )
        .expect("it fits");
        assert_eq!(
            placed,
            Placed {
                start: 0x7f_f000,
                size: 0x1000
            }
        );
    }

    #[test]
    fn initrd_that_fills_the_room_fits_and_one_byte_more_does_not() {
        let room = 0x100_0000 - 0x20_1000;
        assert_eq!(place(room, "i", ROOM).expect("it fits").start, 0x20_1000);
        let error = place(room + 1, "i", ROOM).expect_err("too large");
        assert_eq!(
            error.to_string(),
            "Initrd 'i' and the kernel need 17 MiB of RAM below 3 GiB, and the guest has 16 MiB; \
             give it more with -m"
        );
    }

    #[test]
    fn initrd_beyond_the_kernels_limit_is_told_apart_from_lack_of_ram() {
        let room = Room {
            ram_end: 0xc000_0000,
            ..ROOM
        };
        assert!(matches!(
            place(0x9000_0000, "i", room),
            Err(Error::InitrdBeyondLimit {
                needed: 2307,
                limit: 2048,
                ..
            })
        ));
        assert!(matches!(
            place(u64::MAX, "i", room),
            Err(Error::InitrdBeyondLimit { .. })
        ));
    }

    #[test]
    fn empty_initrd_is_refused() {
        assert!(matches!(
            place(0, "i", ROOM),
            Err(Error::InitrdEmpty { .. })
        ));
    }
}

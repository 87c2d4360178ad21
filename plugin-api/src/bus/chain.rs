//! A descriptor chain found by its head.
//!
//! `virtio_queue` makes chains of what stands in the available ring. A request that was taken
//! before a handover stands there no longer: the driver may have used its place again. What is
//! known of it is its head, and its descriptors are where they were.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::memory::GuestRam;

const DESCRIPTOR_BYTES: u64 = size_of::<Descriptor>() as u64;

/// The descriptors of a chain, by the rules of `virtio_queue::DescriptorChain`: it ends early at a
/// descriptor that cannot be read, after as many as its table has, and before it would pass 4 GiB.
#[derive(Clone)]
pub struct Chain<'m> {
    memory: &'m GuestRam,
    table: GuestAddress,
    entries: u16,
    next: u16,
    /// How many descriptors may still come; a chain longer than its table has a loop.
    left: u16,
    bytes: u32,
    indirect: bool,
}

impl<'m> Chain<'m> {
    pub(super) fn new(memory: &'m GuestRam, table: u64, entries: u16, head: u16) -> Self {
        Self {
            memory,
            table: GuestAddress(table),
            entries,
            next: head,
            left: entries,
            bytes: 0,
            indirect: false,
        }
    }

    fn read(&self) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.entries {
            return None;
        }
        let at = u64::from(self.next) * DESCRIPTOR_BYTES;
        self.memory.read_obj(self.table.checked_add(at)?).ok()
    }

    /// Goes on in the table that `descriptor` refers to (VIRTIO 1.3 section 2.7.5.3), which ends the
    /// outer one.
    fn enter(&mut self, descriptor: &Descriptor) -> Option<()> {
        let bytes = u64::from(descriptor.len());
        if self.indirect || !bytes.is_multiple_of(DESCRIPTOR_BYTES) {
            return None;
        }
        self.entries = u16::try_from(bytes / DESCRIPTOR_BYTES).ok()?;
        self.table = descriptor.addr();
        self.next = 0;
        self.left = self.entries;
        self.indirect = true;
        Some(())
    }
}

impl Iterator for Chain<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        while descriptor.refers_to_indirect_table() {
            self.enter(&descriptor)?;
            descriptor = self.read()?;
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        if descriptor.has_next() {
            self.next = descriptor.next();
            self.left -= 1;
        } else {
            self.left = 0;
        }
        Some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Buffer, GuestQueue, TestRam};

    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;

    /// What both kinds of chain give for the head that stands next in the ring.
    fn both(ram: &TestRam, guest: &GuestQueue, head: u16) -> [Vec<(u64, u32, bool)>; 2] {
        let memory = ram.memory();
        let mut queue = super::super::VirtQueue::new(&guest.setup(), false).unwrap();
        let plain = |d: Descriptor| (d.addr().0, d.len(), d.is_write_only());
        [
            queue.chain_at(&memory, head).unwrap().map(plain).collect(),
            queue.pop(&memory).unwrap().unwrap().map(plain).collect(),
        ]
    }

    fn buffers() -> [Buffer; 3] {
        [
            Buffer::readable(0x8000, 16),
            Buffer::writable(0x9000, 512),
            Buffer::writable(0xa000, 1),
        ]
    }

    #[test]
    fn a_chain_found_by_its_head_is_the_one_of_the_ring() {
        let ram = TestRam::new(64 << 10);
        let mut guest = GuestQueue::new(&ram, 0, 8, 0x1000);
        let head = guest.add(&buffers());
        let [by_head, popped] = both(&ram, &guest, head);
        assert_eq!(by_head.len(), 3);
        assert_eq!(by_head, popped);
    }

    #[test]
    fn an_indirect_chain_found_by_its_head_is_the_one_of_the_ring() {
        let ram = TestRam::new(64 << 10);
        let mut guest = GuestQueue::new(&ram, 0, 8, 0x1000);
        let head = guest.add_indirect(0x7000, &buffers());
        let [by_head, popped] = both(&ram, &guest, head);
        assert_eq!(by_head.len(), 3);
        assert_eq!(by_head, popped);
    }

    #[test]
    fn a_hostile_chain_ends_where_the_one_of_the_ring_ends() {
        // Address, length, flags and next of each descriptor.
        type Descriptors = &'static [(u64, u32, u16, u16)];
        let cases: [(&str, Descriptors); 5] = [
            ("a loop", &[(0x8000, 4, NEXT, 1), (0x8000, 4, NEXT, 0)]),
            (
                "a next that is no descriptor",
                &[(0x8000, 4, NEXT, 1), (0x8000, 4, NEXT, 9)],
            ),
            ("a table that is no memory", &[(1 << 40, 32, INDIRECT, 0)]),
            ("half a descriptor", &[(0x7000, 24, INDIRECT, 0)]),
            (
                "more than 4 GiB",
                &[(0x8000, u32::MAX, NEXT, 1), (0x8000, 1, 0, 0)],
            ),
        ];
        for (what, descriptors) in cases {
            let ram = TestRam::new(64 << 10);
            let mut guest = GuestQueue::new(&ram, 0, 8, 0x1000);
            for (at, &(address, len, flags, next)) in descriptors.iter().enumerate() {
                guest.write_descriptor(at as u16, address, len, flags, next);
            }
            guest.make_available(0);
            let [by_head, popped] = both(&ram, &guest, 0);
            assert_eq!(by_head, popped, "{what}");
        }
    }

    #[test]
    fn an_indirect_table_within_another_ends_the_chain() {
        for place in [0, 1] {
            let ram = TestRam::new(64 << 10);
            let mut guest = GuestQueue::new(&ram, 0, 8, 0x1000);
            let head = guest.add_indirect(0x7000, &buffers());
            // This descriptor of the table becomes one that refers to the table itself.
            let descriptor = Descriptor::new(0x7000, 48, INDIRECT, 0);
            ram.memory()
                .write_obj(descriptor, GuestAddress(0x7000 + 16 * place))
                .unwrap();
            let [by_head, popped] = both(&ram, &guest, head);
            assert_eq!(by_head, popped);
            assert_eq!(by_head.len() as u64, place);
        }
    }

    #[test]
    fn a_head_beyond_the_queue_is_refused() {
        let ram = TestRam::new(64 << 10);
        let guest = GuestQueue::new(&ram, 3, 8, 0x1000);
        let queue = super::super::VirtQueue::new(&guest.setup(), false).unwrap();
        let error = queue.chain_at(&ram.memory(), 8).err().unwrap();
        assert_eq!(
            error.message,
            "Queue 3: descriptor 8 is beyond its 8; the state is not of this queue"
        );
    }
}

//! Guest RAM made ready before the guest comes.

use baton_migration::HostError;

use super::Machine;
use crate::vcpu::PRE_FAULT_CAPABILITY;

impl Machine {
    /// Enters guest RAM into this process's page tables, and into KVM's where the kernel can.
    pub fn warm_ram(&self) -> Result<(), HostError> {
        self.around.ram.warm_up();
        if self
            .around
            .vm
            .check_extension_raw(PRE_FAULT_CAPABILITY.into())
            <= 0
        {
            return Ok(());
        }
        let held = self.around.ram.held();
        for (vcpu, part) in self.vcpus.iter().zip(shares(&held, self.vcpus.len())) {
            vcpu.pre_fault(part)?;
        }
        // An order to each that comes after.
        for vcpu in &self.vcpus {
            vcpu.with(|_| ())?;
        }
        Ok(())
    }
}

/// `ranges` of (address, bytes) in `count` parts of about one size, cut at 2 MiB.
fn shares(ranges: &[(u64, u64)], count: usize) -> Vec<Vec<(u64, u64)>> {
    const CUT: u64 = 2 << 20;
    let total: u64 = ranges.iter().map(|(_, size)| size).sum();
    let each = total.div_ceil(count.max(1) as u64).next_multiple_of(CUT);
    let mut shares = vec![Vec::new(); count];
    let (mut at, mut room) = (0, each);
    for &(mut start, mut size) in ranges {
        while size > 0 && at < count {
            let taken = size.min(room);
            shares[at].push((start, taken));
            (start, size, room) = (start + taken, size - taken, room - taken);
            if room == 0 {
                (at, room) = (at + 1, each);
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn every_range_is_shared_out_once_and_about_evenly() {
        let ranges = [(0, 3 * MIB), (8 * MIB, 9 * MIB), (4096 * MIB, MIB)];
        for count in 1..6 {
            let shares = shares(&ranges, count);
            assert_eq!(shares.len(), count);
            let mut all: Vec<_> = shares.into_iter().flatten().collect();
            all.sort_unstable();
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for (start, size) in all {
                match joined.last_mut() {
                    Some((from, length)) if *from + *length == start => *length += size,
                    _ => joined.push((start, size)),
                }
            }
            assert_eq!(joined, ranges, "{count}");
        }
    }

    #[test]
    fn nothing_is_shared_out_as_nothing() {
        assert_eq!(shares(&[], 2), vec![Vec::new(), Vec::new()]);
    }
}

//! Which pages of RAM are written, by whomever, while the guest runs.

use baton_migration::HostError;
use baton_migration::precopy::PageSet;
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;

use super::Machine;
use super::kvm::{ioctl, map_ram};

impl Machine {
    /// From here on pages that are written are noted; what was noted before is forgotten.
    pub fn log_writes(&self) -> Result<(), HostError> {
        let ram = &self.around.ram;
        let mut before = PageSet::none_of(ram.bytes());
        ram.take_written(&mut before);
        map_ram(&self.around.vm, ram, KVM_MEM_LOG_DIRTY_PAGES)?;
        Ok(())
    }

    /// Nothing needs to be noted any more.
    pub fn forget_writes(&self) -> Result<(), HostError> {
        Ok(map_ram(&self.around.vm, &self.around.ram, 0)?)
    }

    /// Adds pages that were written since this was asked last to `pages`: by vCPUs, as KVM knows, by
    /// devices and by the host.
    pub fn written(&self, pages: &mut PageSet) -> Result<(), HostError> {
        let ram = &self.around.ram;
        let mut base = 0;
        for (slot, (_, size)) in ram.ranges().iter().enumerate() {
            let log = self.around.vm.get_dirty_log(slot as u32, *size);
            let log = log.map_err(ioctl("tell which pages were written"))?;
            pages.add_bitmap(base, log);
            base += *size as u64;
        }
        ram.take_written(pages);
        Ok(())
    }
}

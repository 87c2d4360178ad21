//! What is the same for every PCI function: config space and MSI-X, and telling the host of them.

use std::ops::Range;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{BarKind, ConfigSpace, ConfigSpaceState, Msi, Msix, MsixPart, MsixState};
use crate::bus::{CONFIG_REGION, PciInfo};
use crate::error::{Error, Result};
use crate::fd::borrow;
use crate::host::Host;
use crate::protocol::MsiMessage;

const BARS: usize = 6;

/// Where a function has its MSI-X table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    /// How many vectors.
    pub vectors: u16,
    /// The BAR.
    pub bar: u8,
    /// Where the table begins in the BAR.
    pub table: u32,
    /// Where the pending bits begin in the BAR.
    pub pending: u32,
}

/// Everything of a [`Function`] that can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionState {
    /// The config space.
    pub config: ConfigSpaceState,
    /// The MSI-X table, if there is one.
    pub msix: Option<MsixState>,
    /// The vectors whose interrupt waits until the guest unmasks them.
    pub pending: Vec<u16>,
}

/// A config space and an MSI-X table that tell the host what the guest programs.
///
/// A device hands it every access ([`Self::read`], [`Self::write`]) and keeps what is its own.
pub struct Function {
    host: Host,
    config: ConfigSpace,
    vectors: Vectors,
    /// Where each BAR decodes, as the host was told.
    bars: [Option<u64>; BARS],
    asleep: bool,
}

struct Vectors {
    msix: Option<Msix>,
    msi: Option<Msi>,
    irqfds: Vec<EventFd>,
    /// What each sends, as the host was told.
    sent: Vec<Option<MsiMessage>>,
}

/// How the guest lets a function interrupt it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enabled {
    /// By MSI-X, with all of its vectors.
    Msix(u16),
    /// By MSI, with this many vectors.
    Msi(u16),
}

impl Function {
    /// A function with this config space, BARs and other capabilities included. To be called in
    /// `realize`, since it asks the host for each vector's interrupt.
    pub fn new(host: Host, mut config: ConfigSpace, msix: Option<MsixPlace>) -> Result<Self> {
        let placed = |p: MsixPlace| Msix::new(&mut config, p.bar, p.vectors, p.table, p.pending);
        let msix = msix.map(placed).transpose()?;
        Self::with_interrupts(host, config, msix, None)
    }

    /// The same with capabilities that are in `config` already. Their vectors are the same: a guest
    /// switches one of them on.
    pub fn with_interrupts(
        host: Host,
        config: ConfigSpace,
        msix: Option<Msix>,
        msi: Option<Msi>,
    ) -> Result<Self> {
        let vectors = Vectors::new(&host, msix, msi)?;
        Ok(Self {
            host,
            config,
            vectors,
            bars: [None; BARS],
            asleep: false,
        })
    }

    /// What the guest has programmed.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// How the guest lets it interrupt now.
    pub fn enabled(&self) -> Option<Enabled> {
        self.vectors.enabled(&self.config)
    }

    /// The eventfd of each vector, from the first on.
    pub fn irqfds(&self) -> &[EventFd] {
        &self.vectors.irqfds
    }

    /// Lets no BAR decode from here on, or again what the guest has programmed: a function that is not
    /// in D0 answers to config space alone (PCI Power Management 1.2 section 5.4). It is no part of the
    /// state.
    pub fn set_asleep(&mut self, asleep: bool) {
        self.asleep = asleep;
        self.tell_or_fail();
    }

    /// What [`PciDevice::pci`](crate::PciDevice::pci) answers.
    pub fn info(&self) -> PciInfo {
        let is_port = |bar: &u32| self.config.bar_kind(*bar as usize) == Some(BarKind::Port);
        PciInfo {
            msix_vectors: self.vectors.irqfds.len() as u16,
            bar_sizes: std::array::from_fn(|bar| self.config.bar_size(bar)),
            port_bars: (0..BARS as u32).filter(is_port).collect(),
        }
    }

    /// Reads config space or MSI-X; false, and nothing read, if the access is neither.
    pub fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> bool {
        let vectors = &self.vectors;
        let pending = |vector: u16| vectors.pending(vector);
        if region == CONFIG_REGION {
            self.config.read(offset, data);
            if let Some(msi) = &vectors.msi {
                msi.read_pending(offset, data, pending);
            }
            return true;
        }
        let Some(msix) = &vectors.msix else {
            return false;
        };
        match msix.part(region, offset) {
            Some(MsixPart::Table(at)) => msix.read_table(at, data),
            Some(MsixPart::Pending(at)) => msix.read_pending(at, data, pending),
            None => return false,
        }
        true
    }

    /// Writes config space or MSI-X, and tells the host what that changes; false, and nothing
    /// written, if the access is neither.
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> bool {
        if region == CONFIG_REGION {
            self.config.write(offset, data);
        } else {
            let Some(msix) = &mut self.vectors.msix else {
                return false;
            };
            match msix.part(region, offset) {
                Some(MsixPart::Table(at)) => msix.write_table(at, data),
                Some(MsixPart::Pending(_)) => return true,
                None => return false,
            }
        }
        self.tell_or_fail();
        true
    }

    /// Interrupts the guest by a vector, at once or, if it is masked, when it is unmasked. Nothing
    /// happens while the guest has switched on neither MSI-X nor MSI.
    pub fn interrupt(&self, vector: u16) -> Result<()> {
        if self.vectors.irqfds.is_empty() {
            return Ok(());
        }
        let irqfd = self
            .vectors
            .irqfds
            .get(usize::from(vector))
            .ok_or_else(|| Error::invalid(format!("There is no MSI-X vector {vector}")))?;
        if self.enabled().is_none() {
            return Ok(());
        }
        irqfd
            .write(1)
            .map_err(|e| Error::io(format!("Cannot raise vector {vector}"), &e))
    }

    /// Back to power-on: nothing decodes, no vector sends, no interrupt waits.
    pub fn reset(&mut self) {
        self.config.reset();
        if let Some(msix) = &mut self.vectors.msix {
            msix.reset();
        }
        self.tell_or_fail();
        self.vectors.forget_pending();
    }

    /// What can change of it.
    pub fn state(&self) -> FunctionState {
        let vectors = &self.vectors;
        FunctionState {
            config: self.config.state(),
            msix: vectors.msix.as_ref().map(Msix::state),
            pending: vectors.all().filter(|&n| vectors.pending(n)).collect(),
        }
    }

    /// Takes the state of the same function, and tells the host of it. Any other is refused and
    /// changes nothing.
    pub fn load(&mut self, state: &FunctionState) -> Result<()> {
        let mut config = self.config.clone();
        config.load(&state.config)?;
        let mut msix = self.vectors.msix.clone();
        match (&mut msix, &state.msix) {
            (Some(msix), Some(state)) => msix.load(state)?,
            (None, None) => {}
            _ => {
                return Err(Error::state(
                    "Only one of the device and the state has MSI-X; start the target with the \
                     same device",
                ));
            }
        }
        let count = self.vectors.irqfds.len() as u16;
        if let Some(vector) = state.pending.iter().find(|&&vector| vector >= count) {
            return Err(Error::state(format!(
                "Vector {vector} waits in the state, there are {count} here; the state is damaged"
            )));
        }
        self.config = config;
        self.vectors.msix = msix;
        self.vectors.forget_pending();
        self.tell()?;
        state.pending.iter().try_for_each(|&vector| {
            self.vectors.irqfds[usize::from(vector)]
                .write(1)
                .map_err(|e| Error::io(format!("Cannot raise vector {vector}"), &e))
        })
    }

    /// Tells the host what it does not know yet. BARs are taken away before others take their place.
    fn tell(&mut self) -> Result<()> {
        let decodes = |bar| self.config.bar_address(bar).filter(|_| !self.asleep);
        let now: [_; BARS] = std::array::from_fn(decodes);
        for (bar, (told, now)) in self.bars.iter_mut().zip(now).enumerate() {
            if told.is_some() && *told != now {
                *told = None;
                self.host.pci_bar(bar as u32, None)?;
            }
        }
        for (bar, (told, now)) in self.bars.iter_mut().zip(now).enumerate() {
            if *told != now {
                *told = now;
                self.host.pci_bar(bar as u32, now)?;
            }
        }
        for vector in self.vectors.all() {
            let message = self.vectors.message(&self.config, vector);
            let sent = &mut self.vectors.sent[usize::from(vector)];
            if *sent != message {
                *sent = message;
                self.host.msix_vector(u32::from(vector), message)?;
            }
        }
        Ok(())
    }

    /// For the guest's accesses, which nobody can give an error to.
    fn tell_or_fail(&mut self) {
        if let Err(error) = self.tell() {
            self.host.failed(&error.message);
        }
    }
}

impl Vectors {
    fn new(host: &Host, msix: Option<Msix>, msi: Option<Msi>) -> Result<Self> {
        let count = msix.as_ref().map_or(0, Msix::vectors);
        let count = count.max(msi.as_ref().map_or(0, Msi::vectors));
        Ok(Self {
            msix,
            msi,
            irqfds: (0..count)
                .map(|vector| host.irqfd(u32::from(vector)))
                .collect::<Result<_>>()?,
            sent: vec![None; usize::from(count)],
        })
    }

    fn all(&self) -> Range<u16> {
        0..self.irqfds.len() as u16
    }

    fn enabled(&self, config: &ConfigSpace) -> Option<Enabled> {
        // With both on, which no driver may do, MSI-X comes first.
        let msix = self.msix.as_ref().filter(|msix| msix.enabled(config));
        let msi = || self.msi.as_ref().and_then(|msi| msi.enabled(config));
        msix.map(|msix| Enabled::Msix(msix.vectors()))
            .or_else(|| msi().map(Enabled::Msi))
    }

    fn message(&self, config: &ConfigSpace, vector: u16) -> Option<MsiMessage> {
        match self.enabled(config)? {
            Enabled::Msix(_) => self.msix.as_ref()?.message(config, vector),
            Enabled::Msi(_) => self.msi.as_ref()?.message(config, vector),
        }
    }

    /// Whether an interrupt waits: what is written to the eventfd stays there while the vector
    /// sends nothing.
    fn pending(&self, vector: u16) -> bool {
        self.irqfds.get(usize::from(vector)).is_some_and(|irqfd| {
            let mut fds = [PollFd::new(borrow(irqfd), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        })
    }

    fn forget_pending(&self) {
        for vector in self.all().filter(|&vector| self.pending(vector)) {
            // Somebody else may have taken it, which is as good.
            let _ = self.irqfds[usize::from(vector)].read();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{Identity, MsiLayout, MsixLayout};
    use crate::testing::TestHost;
    use std::sync::Arc;

    const COMMAND: u64 = 0x04;
    const BAR0: u64 = 0x10;
    const BAR1: u64 = 0x14;
    const MSIX_CONTROL: u64 = 0x42;
    const ENABLE: [u8; 2] = 0x8000u16.to_le_bytes();
    const TABLE: u32 = 0x1000;
    const PENDING: u32 = 0x2000;

    fn function(host: &Arc<TestHost>) -> Function {
        let mut config = ConfigSpace::new(Identity::default());
        config.add_bar(0, BarKind::Port, 0x100).unwrap();
        config.add_bar(1, BarKind::Memory32, 0x4000).unwrap();
        config.add_bar(2, BarKind::Memory32, 0x4000).unwrap();
        let place = MsixPlace {
            vectors: 2,
            bar: 1,
            table: TABLE,
            pending: PENDING,
        };
        Function::new(host.host(), config, Some(place)).unwrap()
    }

    fn configure(function: &mut Function, offset: u64, data: &[u8]) {
        assert!(function.write(CONFIG_REGION, offset, data));
    }

    fn program(function: &mut Function, vector: u64, control: u32) -> MsiMessage {
        let message = MsiMessage {
            address: 0xfee0_1000,
            data: 0x40 + vector as u32,
        };
        let entry = u64::from(TABLE) + vector * 16;
        assert!(function.write(1, entry, &message.address.to_le_bytes()));
        assert!(function.write(1, entry + 8, &message.data.to_le_bytes()));
        assert!(function.write(1, entry + 12, &control.to_le_bytes()));
        message
    }

    #[test]
    fn the_host_is_told_of_bars_as_the_guest_moves_and_switches_them() {
        let host = TestHost::new();
        let mut function = function(&host);
        let bars = || [host.bar(0), host.bar(1)];
        configure(&mut function, BAR0, &0xc000u32.to_le_bytes());
        configure(&mut function, BAR1, &0xd000_0000u32.to_le_bytes());
        assert_eq!(bars(), [None, None]);
        configure(&mut function, COMMAND, &[0x02, 0]);
        assert_eq!(bars(), [None, Some(0xd000_0000)]);
        configure(&mut function, COMMAND, &[0x03, 0]);
        configure(&mut function, BAR1, &0xd100_0000u32.to_le_bytes());
        assert_eq!(bars(), [Some(0xc000), Some(0xd100_0000)]);
        configure(&mut function, COMMAND, &[0x01, 0]);
        assert_eq!(bars(), [Some(0xc000), None]);
        function.reset();
        assert_eq!(bars(), [None, None]);
    }

    #[test]
    fn the_host_is_told_of_vectors_as_the_guest_programs_them() {
        let host = TestHost::new();
        let mut function = function(&host);
        let message = program(&mut function, 1, 0);
        assert_eq!(host.vector(1), None);
        configure(&mut function, MSIX_CONTROL, &ENABLE);
        assert_eq!((host.vector(0), host.vector(1)), (None, Some(message)));
        program(&mut function, 1, 1);
        assert_eq!(host.vector(1), None);
        program(&mut function, 1, 0);
        function.reset();
        assert_eq!(host.vector(1), None);
    }

    #[test]
    fn a_reset_is_as_good_as_new() {
        let host = TestHost::new();
        let mut function = function(&host);
        let new = function.state();
        configure(&mut function, COMMAND, &[0x03, 0]);
        configure(&mut function, MSIX_CONTROL, &ENABLE);
        program(&mut function, 1, 0);
        assert_ne!(function.state(), new);
        function.reset();
        assert_eq!(function.state(), new);
    }

    #[test]
    fn bars_that_change_places_are_never_told_to_be_in_one() {
        let host = TestHost::new();
        let mut function = function(&host);
        let places = [0xd000_0000u32, 0xd100_0000];
        let settle = |function: &mut Function, [first, second]: [u32; 2]| {
            configure(function, BAR1, &first.to_le_bytes());
            configure(function, BAR1 + 4, &second.to_le_bytes());
            configure(function, COMMAND, &[0x02, 0]);
        };
        settle(&mut function, [places[1], places[0]]);
        let swapped = function.state();
        function.reset();
        settle(&mut function, places);
        function.load(&swapped).unwrap();
        let told = [host.bar(1), host.bar(2)];
        assert_eq!(told, [Some(0xd100_0000), Some(0xd000_0000)]);
        assert_eq!(host.failures(), Vec::<String>::new());
    }

    #[test]
    fn only_config_space_and_the_msix_structures_are_the_functions() {
        let host = TestHost::new();
        let mut function = function(&host);
        let mut data = [7; 4];
        let around = [(0, 0x1000), (1, 0), (1, 0x1020), (1, 0x2008), (2, 0x1000)];
        for (region, offset) in around {
            assert!(!function.read(region, offset, &mut data));
            assert!(!function.write(region, offset, &data));
        }
        assert_eq!(data, [7; 4]);
        for (region, offset) in [(1, 0x101c), (1, 0x2000), (CONFIG_REGION, 0)] {
            assert!(function.read(region, offset, &mut data));
            assert!(function.write(region, offset, &data));
        }
        assert_eq!(function.info().msix_vectors, 2);
        assert_eq!(function.info().port_bars, [0]);
        assert_eq!(function.info().bar_sizes, [0x100, 0x4000, 0x4000, 0, 0, 0]);
    }

    #[test]
    fn an_interrupt_needs_msix_switched_on_and_its_vector_to_be_there() {
        let host = TestHost::new();
        let mut function = function(&host);
        function.interrupt(1).unwrap();
        assert_eq!(host.interrupts(1), 0);
        configure(&mut function, MSIX_CONTROL, &ENABLE);
        function.interrupt(1).unwrap();
        assert_eq!((host.interrupts(0), host.interrupts(1)), (0, 1));
        assert!(function.interrupt(2).is_err());
    }

    #[test]
    fn a_masked_interrupt_shows_as_pending_and_goes_along() {
        let host = TestHost::new();
        let mut source = function(&host);
        configure(&mut source, COMMAND, &[0x02, 0]);
        configure(&mut source, BAR1, &0xd000_0000u32.to_le_bytes());
        configure(&mut source, MSIX_CONTROL, &ENABLE);
        let message = program(&mut source, 0, 0);
        source.interrupt(1).unwrap();
        let mut bits = [0];
        source.read(1, u64::from(PENDING), &mut bits);
        assert_eq!(bits, [2]);
        let state = source.state();

        let host = TestHost::new();
        let mut target = function(&host);
        target.load(&state).unwrap();
        assert_eq!(target.state(), state);
        assert_eq!(host.bar(1), Some(0xd000_0000));
        assert_eq!((host.vector(0), host.vector(1)), (Some(message), None));
        assert_eq!((host.interrupts(0), host.interrupts(1)), (0, 1));
        target.interrupt(1).unwrap();
        target.reset();
        assert_eq!(host.interrupts(1), 0);
    }

    /// MSI at 0x40 with 2 messages, MSI-X at 0x60 with 4 vectors: its table in one BAR, the pending bits
    /// in another.
    fn with_both(host: &Arc<TestHost>) -> Function {
        let mut config = ConfigSpace::new(Identity::default());
        config.add_bar(1, BarKind::Memory32, 0x4000).unwrap();
        config.add_bar(2, BarKind::Memory32, 0x4000).unwrap();
        let msi = MsiLayout {
            vectors: 2,
            wide: false,
            maskable: true,
        };
        let msi = Msi::place(&mut config, 0x40, msi).unwrap();
        let msix = MsixLayout {
            vectors: 4,
            table: (1, TABLE),
            pending: (2, PENDING),
        };
        let msix = Msix::place(&mut config, 0x60, msix).unwrap();
        Function::with_interrupts(host.host(), config, Some(msix), Some(msi)).unwrap()
    }

    #[test]
    fn msi_has_the_first_vectors_until_msix_is_switched_on() {
        let host = TestHost::new();
        let mut function = with_both(&host);
        assert_eq!(function.info().msix_vectors, 4);
        configure(&mut function, 0x44, &0xfee0_2000u32.to_le_bytes());
        configure(&mut function, 0x48, &0x50u16.to_le_bytes());
        assert_eq!((function.enabled(), host.vector(0)), (None, None));
        configure(&mut function, 0x42, &0x0011u16.to_le_bytes());
        assert_eq!(function.enabled(), Some(Enabled::Msi(2)));
        let sent = |data| {
            let address = 0xfee0_2000;
            Some(MsiMessage { address, data })
        };
        assert_eq!((host.vector(0), host.vector(1)), (sent(0x50), sent(0x51)));
        configure(&mut function, 0x4c, &[2]);
        assert_eq!((host.vector(0), host.vector(1)), (sent(0x50), None));
        function.interrupt(1).unwrap();
        let mut bits = [0; 4];
        function.read(CONFIG_REGION, 0x50, &mut bits);
        assert_eq!(bits, [2, 0, 0, 0]);
        let message = program(&mut function, 3, 0);
        configure(&mut function, 0x62, &ENABLE);
        assert_eq!(function.enabled(), Some(Enabled::Msix(4)));
        assert_eq!((host.vector(0), host.vector(3)), (None, Some(message)));
        function.read(2, u64::from(PENDING), &mut bits);
        assert_eq!(bits, [2, 0, 0, 0]);
        let state = function.state();
        let mut other = with_both(&TestHost::new());
        other.load(&state).unwrap();
        assert_eq!(other.state(), state);
    }

    #[test]
    fn a_function_that_sleeps_decodes_nothing() {
        let host = TestHost::new();
        let mut function = function(&host);
        configure(&mut function, COMMAND, &[0x02, 0]);
        configure(&mut function, BAR1, &0xd000_0000u32.to_le_bytes());
        function.set_asleep(true);
        assert_eq!(host.bar(1), None);
        configure(&mut function, BAR1, &0xd100_0000u32.to_le_bytes());
        assert_eq!(host.bar(1), None);
        function.set_asleep(false);
        assert_eq!(host.bar(1), Some(0xd100_0000));
    }

    #[test]
    fn state_of_another_function_is_refused_and_changes_nothing() {
        let host = TestHost::new();
        let mut function = function(&host);
        let before = function.state();
        let mut state = before.clone();
        state.config.bytes[COMMAND as usize] = 2;
        type Damage = fn(&mut FunctionState);
        let damages: [Damage; 4] = [
            |s| s.config.bytes[0] ^= 1,
            |s| s.msix = None,
            |s| s.msix.as_mut().unwrap().entries.clear(),
            |s| s.pending.push(2),
        ];
        for damage in damages {
            let mut state = state.clone();
            damage(&mut state);
            assert!(function.load(&state).is_err());
            assert_eq!(function.state(), before);
        }
    }
}

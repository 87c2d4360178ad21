//! The PC's clock and CMOS memory: an MC146818A at ports 0x70 and 0x71.
//!
//! The guest's time is the host's and an offset, so nothing has to run for it to go on. A timer
//! runs only while the guest has enabled an interrupt: an idle guest costs nothing.

mod alarm;
mod calendar;
mod chip;
mod clock;
mod format;
mod state;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use baton_plugin_api::bus::{AcpiDevice, Region, RegionKind};
use baton_plugin_api::{
    BusClass, Config, Device, DeviceThread, DeviceType, Error, GuestRam, Host, PlatformDevice,
    PlatformInfo, Property, PropertyKind, Result, Section, Value, no_such_section, wire,
};

use calendar::Date;
use chip::{Chip, SECOND};
use clock::{Clock, now};
use state::RtcSection;

baton_plugin_api::export_plugin! {
    description: "The PC's clock and CMOS memory: MC146818A",
    devices: [platform Rtc],
}

const SECTION: &str = "mc146818rtc";
const INDEX: u64 = 0x70;
const IRQ: u32 = 8;
/// As in QEMU, this year stands for "the century is in CMOS memory".
const BY_CENTURY: u64 = 2000;

struct Rtc {
    id: String,
    base_year: i64,
    /// The guest's time at power-on, if it is not the host's.
    begin: Option<Date>,
    host: Host,
    clock: Option<Arc<Clock>>,
    thread: Option<DeviceThread>,
}

impl Device for Rtc {
    fn device_type() -> DeviceType {
        DeviceType {
            properties: vec![
                Property::string("base", 32, "utc", "Time at power-on: utc, or a date"),
                Property::uint(
                    "base_year",
                    0,
                    9999,
                    BY_CENTURY,
                    "What year 0 stands for; 2000: the century is in CMOS memory",
                ),
                Property {
                    default: Some(Value::String("discard".into())),
                    ..Property::new(
                        "lost_tick_policy",
                        PropertyKind::Enum(vec!["discard".into()]),
                        "What happens to periodic interrupts that came while one was pending",
                    )
                },
            ],
            sections: vec![Section::new(SECTION, 1, 1)],
            ..DeviceType::new(
                "mc146818rtc",
                BusClass::Platform,
                "Real-time clock (MC146818)",
            )
        }
    }

    fn create(config: Config, host: Host) -> Result<Self> {
        let base_year = match config.uint("base_year")? {
            BY_CENTURY => 0,
            year => year as i64,
        };
        Ok(Self {
            base_year,
            begin: begin(config.string("base")?)?,
            id: config.id,
            host,
            clock: None,
            thread: None,
        })
    }

    fn realize(&mut self) -> Result<()> {
        let now = now();
        let seconds = |date: Date| i128::from(date.to_seconds()) * SECOND;
        let chip = Chip::new(self.base_year, now, self.begin.map_or(now, seconds));
        self.clock = Some(Arc::new(Clock::new(chip, self.host.irqfd(0)?)?));
        Ok(())
    }

    fn reset(&mut self) -> Result<()> {
        self.clock()?.reset();
        Ok(())
    }

    fn wake_time(&mut self) -> Option<SystemTime> {
        self.clock.as_ref()?.alarm_time()
    }

    fn save(&mut self, section: &str) -> Result<Vec<u8>> {
        match section {
            SECTION => wire::encode(&self.clock()?.save()),
            _ => Err(no_such_section(section)),
        }
    }

    fn load(&mut self, section: &str, _version: u32, data: &[u8]) -> Result<()> {
        match section {
            SECTION => {
                let section: RtcSection = wire::decode("the clock's state", data)?;
                self.clock()?.load(section.into_chip(self.base_year)?);
                Ok(())
            }
            _ => Err(no_such_section(section)),
        }
    }
}

impl PlatformDevice for Rtc {
    fn platform(&self) -> PlatformInfo {
        PlatformInfo {
            regions: vec![Region {
                kind: RegionKind::Port,
                base: INDEX,
                size: 2,
            }],
            irqs: vec![IRQ],
            acpi: Some(AcpiDevice {
                name: "RTC0".into(),
                hid: "PNP0B00".into(),
                uid: 0,
            }),
        }
    }

    fn read(&mut self, _region: u32, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(clock) = &self.clock {
            clock.read(offset, data);
        }
    }

    fn write(&mut self, _region: u32, offset: u64, data: &[u8]) {
        let set = self.clock.as_ref().and_then(|c| c.write(offset, data));
        if let Some(ahead) = set {
            // A host that takes no notice is none of the guest's business.
            let _ = self.host.clock_set(ahead);
        }
    }

    fn start(&mut self, _memory: GuestRam) -> Result<()> {
        let clock = self.clock()?.clone();
        clock.start()?;
        let body = move |waiter: &_| clock.serve(waiter);
        self.thread = Some(DeviceThread::spawn(&self.id, self.host.clone(), body)?);
        Ok(())
    }

    fn settle(&mut self) {
        self.thread.iter().for_each(DeviceThread::settle);
    }

    fn quiesce(&mut self) -> Result<()> {
        self.thread.take().map_or(Ok(()), DeviceThread::stop)
    }
}

impl Rtc {
    fn clock(&self) -> Result<&Arc<Clock>> {
        self.clock
            .as_ref()
            .ok_or_else(|| Error::state("It is not realized"))
    }
}

/// The time that property `base` asks for, or nothing for the host's.
fn begin(base: &str) -> Result<Option<Date>> {
    if base == "utc" {
        return Ok(None);
    }
    Date::parse(base).map(Some).ok_or_else(|| {
        Error::invalid(format!(
            "Property 'base' is '{base}', say utc or a date such as 2026-11-20T18:30:00"
        ))
    })
}

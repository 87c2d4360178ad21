//! The glue on both sides, with messages as another minor version would send them.

use std::collections::BTreeMap;
use std::sync::Arc;

use abi_stable::std_types::{RResult, RSlice};
use serde::Serialize;

use super::*;
use crate::bus::{PlatformAdapter, PlatformDevice, PlatformInfo};
use crate::config::Config;
use crate::descriptor::{BusClass, DeviceType};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::migration::{Blocker, Mode, Section};
use crate::protocol::{
    HostReply, HostRequest, Reply as DeviceReply, Request, SECTION_MAX, StartArguments,
};
use crate::testing::{TestHost, TestRam};
use crate::wire;

/// Saves as many bytes as it was told by its last write, and knows no blockers.
struct Plain {
    saved: usize,
}

impl Device for Plain {
    fn device_type() -> DeviceType {
        DeviceType {
            sections: vec![Section::new("plain", 3, 2).subsection("more", 6, 5)],
            ..DeviceType::new("plain", BusClass::Platform, "A device")
        }
    }

    fn create(_config: Config, _host: Host) -> Result<Self> {
        Ok(Self { saved: 0 })
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn needed(&mut self, subsection: &str) -> bool {
        assert_eq!(subsection, "plain/more");
        self.saved > 0
    }

    fn save(&mut self, _section: &str) -> Result<Vec<u8>> {
        Ok(vec![0; self.saved])
    }

    fn load(&mut self, _section: &str, _version: u32, data: &[u8]) -> Result<()> {
        self.saved = data.len();
        Ok(())
    }
}

impl PlatformDevice for Plain {
    fn platform(&self) -> PlatformInfo {
        PlatformInfo::default()
    }

    fn read(&mut self, _region: u32, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _region: u32, _offset: u64, data: &[u8]) {
        self.saved = data[0] as usize + SECTION_MAX;
    }
}

const CREATORS: [Creator; 1] = [Creator::of::<PlatformAdapter<Plain>>()];

/// A device made from a config of any shape.
fn made_from(config: &impl Serialize) -> Result<PluginDevice> {
    let config = wire::encode(config)?;
    let host = HostHandle::new(TestHost::new());
    match create_by_name("plain", RSlice::from_slice(&config), host, &CREATORS) {
        RResult::ROk(handle) => Ok(PluginDevice(handle)),
        RResult::RErr(error) => Err(super::host::decode_error(error.as_slice())),
    }
}

fn device() -> PluginDevice {
    made_from(&Config {
        id: "p0".into(),
        ..Config::default()
    })
    .unwrap()
}

/// The answer to a message of any shape.
fn answer(device: &mut PluginDevice, message: &impl Serialize) -> Result<DeviceReply> {
    let message = wire::encode(message).unwrap();
    // SAFETY: as in `PluginDevice::call`.
    let reply = unsafe { device.0.ops.call()(device.0.device, RSlice::from_slice(&message)) };
    super::host::decode_reply("the answer", reply)
}

fn load(version: u32, bytes: usize) -> Request {
    Request::Load {
        section: "plain".into(),
        version,
        data: vec![0; bytes],
    }
}

fn save() -> Request {
    Request::Save {
        section: "plain".into(),
    }
}

#[test]
fn a_device_answers_unsupported_to_a_request_of_a_later_minor() {
    let mut device = device();
    let later = BTreeMap::from([("Suspend", BTreeMap::from([("deep", true)]))]);
    for answered in [
        answer(&mut device, &later),
        answer(&mut device, &"Hibernate"),
    ] {
        let error = answered.unwrap_err();
        assert_eq!(
            (error.kind, error.device.as_str()),
            (ErrorKind::Unsupported, "p0")
        );
    }
    // It goes on: what it does not know has done nothing.
    assert_eq!(device.call(&Request::Reset), Ok(DeviceReply::Done));
}

#[test]
fn a_subsection_is_saved_when_it_is_needed_and_loaded_in_its_own_versions() {
    let mut device = device();
    let section = || "plain/more".to_owned();
    let save_more = Request::Save { section: section() };
    let load_more = |version| Request::Load {
        section: section(),
        version,
        data: vec![0],
    };
    assert_eq!(device.call(&save_more), Ok(DeviceReply::NotNeeded));
    // The section itself is always saved.
    let nothing = DeviceReply::Saved { data: Vec::new() };
    assert_eq!(device.call(&save()), Ok(nothing));
    for version in [4, 7, 3] {
        let error = device.call(&load_more(version)).unwrap_err();
        assert!(error.message.contains("'plain/more'"), "{error}");
    }
    for version in [5, 6] {
        assert_eq!(device.call(&load_more(version)), Ok(DeviceReply::Done));
    }
    let data = vec![0];
    assert_eq!(device.call(&save_more), Ok(DeviceReply::Saved { data }));
}

#[test]
fn unsupported_means_to_the_host_what_the_message_says() {
    /// Older than every message.
    struct Old;
    impl Adapter for Old {
        fn device_type() -> DeviceType {
            DeviceType::new("old", BusClass::Platform, "An old device")
        }
        fn create(_: Config, _: Host) -> Result<Self> {
            Ok(Self)
        }
        fn call(&mut self, request: Request) -> Result<DeviceReply> {
            Err(request.unsupported())
        }
        fn read(&mut self, _: u32, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: u32, _: u64, _: &[u8]) {}
    }
    let config = wire::encode(&Config::default()).unwrap();
    let host = HostHandle::new(TestHost::new());
    let creators = [Creator::of::<Old>()];
    let RResult::ROk(handle) = create_by_name("old", RSlice::from_slice(&config), host, &creators)
    else {
        panic!("the device is not created")
    };
    let mut old = PluginDevice(handle);
    assert_eq!(
        old.call_if_known(&Request::Blockers {
            mode: Mode::CprExec
        }),
        Ok(None)
    );
    assert_eq!(
        old.call(&Request::Reset).unwrap_err().kind,
        ErrorKind::Unsupported
    );
}

#[test]
fn a_host_answers_unsupported_to_a_request_of_a_later_minor() {
    let host = HostRef::new(HostHandle::new(TestHost::new()));
    let message = wire::encode(&BTreeMap::from([("Clock", 1)])).unwrap();
    let reply = host.call_encoded(&message);
    let error = super::host::decode_reply::<HostReply>("the answer", reply).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[test]
fn fields_of_a_later_minor_are_ignored_and_absent_ones_have_their_default() {
    // An older host's config has no drives; a later one's has more than this plugin knows.
    #[derive(Serialize)]
    struct Older {
        id: &'static str,
        properties: BTreeMap<String, bool>,
    }
    #[derive(Serialize)]
    struct Later {
        id: &'static str,
        properties: BTreeMap<String, bool>,
        numa_node: u32,
    }
    assert!(
        made_from(&Older {
            id: "p0",
            properties: BTreeMap::new()
        })
        .is_ok()
    );
    let later = Later {
        id: "p0",
        properties: BTreeMap::new(),
        numa_node: 1,
    };
    let mut device = made_from(&later).unwrap();

    #[derive(Serialize)]
    struct LaterBlockers {
        mode: Mode,
        verbose: bool,
    }
    let inner = LaterBlockers {
        mode: Mode::CprExec,
        verbose: true,
    };
    let request = BTreeMap::from([("Blockers", inner)]);
    assert_eq!(
        answer(&mut device, &request),
        Ok(DeviceReply::Blockers(Vec::<Blocker>::new()))
    );
}

#[test]
fn a_section_of_a_version_the_plugin_does_not_read_never_reaches_the_device() {
    let mut device = device();
    assert_eq!(device.call(&load(2, 1)), Ok(DeviceReply::Done));
    assert_eq!(device.call(&load(3, 2)), Ok(DeviceReply::Done));
    for (version, reason) in [(4, "reads up to 3"), (1, "reads from 2")] {
        let error = device.call(&load(version, 9)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::State);
        assert!(
            error
                .to_string()
                .starts_with("Device 'p0': Section 'plain'"),
            "{error}"
        );
        assert!(error.message.contains(reason), "{error}");
    }
    let other = Request::Load {
        section: "other".into(),
        version: 3,
        data: Vec::new(),
    };
    assert!(device.call(&other).unwrap_err().message.contains("'other'"));
    // The state is still that of the last load that was let through.
    assert_eq!(
        device.call(&save()),
        Ok(DeviceReply::Saved { data: vec![0; 2] })
    );
}

#[test]
fn a_section_larger_than_the_bound_is_an_error() {
    let mut device = device();
    device.write(0, 0, &[0]);
    assert!(
        matches!(device.call(&save()), Ok(DeviceReply::Saved { data }) if data.len() == SECTION_MAX)
    );
    device.write(0, 0, &[1]);
    let error = device.call(&save()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::State);
    assert!(
        error
            .message
            .contains("67108865 bytes, 67108864 are allowed"),
        "{error}"
    );
}

#[test]
fn a_device_that_runs_is_not_reset_saved_loaded_or_started_again() {
    let mut device = device();
    let ram = TestRam::new(4096);
    let start = Request::Start(StartArguments {
        memory: ram.table(),
        ..Default::default()
    });
    assert_eq!(device.call(&start), Ok(DeviceReply::Done));
    for request in [
        Request::Realize,
        Request::Reset,
        save(),
        load(3, 1),
        start.clone(),
    ] {
        let error = device.call(&request).unwrap_err();
        assert!(error.message.contains("quiesce it first"), "{error}");
    }
    assert!(
        device
            .call(&Request::Blockers {
                mode: Mode::CprExec
            })
            .is_ok()
    );
    device.call(&Request::Quiesce).unwrap();
    assert!(device.call(&save()).is_ok());
    assert_eq!(device.call(&start), Ok(DeviceReply::Done));
}

#[test]
fn a_panic_of_the_host_is_an_error_to_the_device() {
    struct Panics;
    impl HostServices for Panics {
        fn call(&self, request: HostRequest) -> Result<HostReply> {
            panic!("no {request:?}")
        }
        fn set_irq(&self, _: u32, _: bool) {
            panic!("no line")
        }
        fn log(&self, _: u32, _: &str, _: &str) {
            panic!("no log")
        }
        fn log_level(&self) -> u32 {
            panic!("no level")
        }
    }
    let host = Host::new(HostRef::new(HostHandle::new(Arc::new(Panics))));
    let error: Error = host.config_changed().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Panicked);
    host.set_irq(0, true);
    host.log(1, "test", "text");
    assert_eq!(host.log_level(), 0);
}

//! The parameters that QEMU has and that mean nothing here: reported, and left as they are.

use serde_json::{Value, json};

const THROTTLE: &str = "Baton does not slow vCPUs down for a migration";
const ANNOUNCE: &str = "no network device announces itself";
const COMPRESSION: &str = "RAM is not compressed";
const POSTCOPY: &str = "Baton has no postcopy";
const COLO: &str = "Baton has no COLO";
const TLS: &str = "channels have no TLS";
const BANDWIDTH: &str = "the bandwidth is measured";
const BITMAPS: &str = "there are no dirty bitmaps of disks";

/// A parameter that cannot be changed.
pub(super) struct Fixed {
    pub(super) name: &'static str,
    /// Its only value; nothing if QEMU does not report it unless it was set.
    pub(super) value: Option<Value>,
    /// What an operator must know who wants another.
    pub(super) why: &'static str,
}

/// All of them, with QEMU's defaults.
pub(super) fn all() -> Vec<Fixed> {
    let none = || json!("");
    [
        ("announce-initial", json!(50), ANNOUNCE),
        ("announce-max", json!(550), ANNOUNCE),
        ("announce-rounds", json!(5), ANNOUNCE),
        ("announce-step", json!(100), ANNOUNCE),
        ("avail-switchover-bandwidth", json!(0), BANDWIDTH),
        ("block-bitmap-mapping", Value::Null, BITMAPS),
        ("cpu-throttle-increment", json!(10), THROTTLE),
        ("cpu-throttle-initial", json!(20), THROTTLE),
        ("cpu-throttle-tailslow", json!(false), THROTTLE),
        ("max-cpu-throttle", json!(99), THROTTLE),
        ("max-postcopy-bandwidth", json!(0), POSTCOPY),
        ("multifd-compression", json!("none"), COMPRESSION),
        ("multifd-qatzip-level", json!(1), COMPRESSION),
        ("multifd-zlib-level", json!(1), COMPRESSION),
        ("multifd-zstd-level", json!(1), COMPRESSION),
        ("throttle-trigger-threshold", json!(50), THROTTLE),
        ("tls-authz", none(), TLS),
        ("tls-creds", none(), TLS),
        ("tls-hostname", none(), TLS),
        ("vcpu-dirty-limit", json!(1), THROTTLE),
        ("x-checkpoint-delay", json!(20000), COLO),
        ("x-vcpu-dirty-limit-period", json!(1000), THROTTLE),
        ("xbzrle-cache-size", json!(64 << 20), COMPRESSION),
    ]
    .map(|(name, value, why)| Fixed {
        name,
        value: Some(value).filter(|value| !value.is_null()),
        why,
    })
    .into()
}

impl Fixed {
    /// Takes the value it has, and refuses every other.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        let (name, why) = (self.name, self.why);
        let Some(only) = &self.value else {
            return Err(format!(
                "Parameter '{name}' cannot be set: {why}; leave it out"
            ));
        };
        // QEMU's way to unset a text.
        let unset = value.is_null() && *only == "";
        if value == only || unset {
            return Ok(());
        }
        Err(format!(
            "Parameter '{name}' cannot be changed from {only}: {why}; leave it out"
        ))
    }
}

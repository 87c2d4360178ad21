//! `-global`: properties of the driver `migration`, which are the migration parameters and
//! capabilities.

use baton_migration::settings::{Capability, MigrationParameters, ParameterChanges, Settings};
use serde_json::{Map, Value};

use super::nearest::hint;
use super::number;
use super::pairs::Pairs;

/// All values of `-global` together: of several for one property the last wins.
#[derive(Default)]
pub(super) struct Globals {
    parameters: Map<String, Value>,
    capabilities: Vec<(Capability, bool)>,
}

impl Globals {
    /// Adds one value.
    pub(super) fn add(&mut self, text: &str) -> Result<(), String> {
        let (driver, property, value) = split(text)?;
        if driver != "migration" {
            return Err(format!(
                "Driver '{driver}' has no global properties; only migration has"
            ));
        }
        let known = MigrationParameters::default().report();
        // QEMU puts x- before the names of most.
        let short = property.strip_prefix("x-").unwrap_or(&property);
        let named = |name: &str| name == property || name == short;
        if let Some(capability) = Capability::ALL.into_iter().find(|one| named(one.as_str())) {
            let on = switch(&property, &value)?;
            self.capabilities.push((capability, on));
        } else if let Some((name, default)) = known.iter().find(|(name, _)| named(name)) {
            let value = value_like(default, &property, value)?;
            let one = Map::from_iter([(name.clone(), value.clone())]);
            // Told here, where it is known which -global it is.
            ParameterChanges::read(&one)?;
            self.parameters.insert(name.clone(), value);
        } else {
            let names = known.keys().map(String::as_str);
            let names = names.chain(Capability::ALL.map(Capability::as_str));
            return Err(format!(
                "Property 'migration.{property}' not found{}",
                hint(&property, names)
            ));
        }
        Ok(())
    }

    /// The settings a process begins with.
    pub(super) fn settings(self) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let changes = ParameterChanges::read(&self.parameters)?;
        settings.parameters.apply(changes);
        settings.capabilities = settings.capabilities.with(&self.capabilities)?;
        Ok(settings)
    }
}

/// Driver, property and value, in either of the two forms.
fn split(text: &str) -> Result<(String, String, String), String> {
    // As in QEMU: the short form unless the long one is there.
    let short = text
        .split_once('=')
        .and_then(|(name, value)| Some((name.split_once('.')?, value)));
    if let Some(((driver, property), value)) = short
        && !driver.contains(',')
    {
        return Ok((driver.to_owned(), property.to_owned(), value.to_owned()));
    }
    let mut pairs = Pairs::parse(text, Some("driver"))?;
    let all = (
        pairs.require("driver")?,
        pairs.require("property")?,
        pairs.require("value")?,
    );
    pairs.finish("global.")?;
    Ok(all)
}

fn switch(property: &str, text: &str) -> Result<bool, String> {
    number::switch(text).ok_or_else(|| format!("Parameter '{property}' expects 'on' or 'off'"))
}

/// `text` as the type that `default` has.
fn value_like(default: &Value, property: &str, text: String) -> Result<Value, String> {
    match default {
        Value::Bool(_) => switch(property, &text).map(Value::Bool),
        Value::Number(_) => number::size(&text, 0)
            .map(Value::from)
            .ok_or_else(|| format!("Parameter '{property}' expects a number")),
        Value::Array(_) => Err(format!(
            "Parameter '{property}' is a list; set it with the QMP command migrate-set-parameters"
        )),
        _ => Ok(Value::String(text)),
    }
}

#[cfg(test)]
mod tests {
    use baton_migration::Mode;

    use super::*;

    fn settings(texts: &[&str]) -> Result<Settings, String> {
        let mut globals = Globals::default();
        texts.iter().try_for_each(|text| globals.add(text))?;
        globals.settings()
    }

    #[test]
    fn parameters_and_capabilities_are_set_by_name() {
        let settings = settings(&[
            "migration.x-events=on",
            "migration.x-ignore-shared=on",
            "migration.multifd=on",
            "migration.mode=cpr-reboot",
            "migration.x-max-bandwidth=1M",
            "migration.multifd-channels=8",
            "driver=migration,property=multifd-channels,value=4",
            "migration.direct-io=yes",
            "migration.announce-max=550",
        ])
        .unwrap();
        let on = [
            Capability::Events,
            Capability::XIgnoreShared,
            Capability::Multifd,
        ];
        assert_eq!(settings.capabilities, on.into_iter().collect());
        let expected = MigrationParameters {
            mode: Mode::CprReboot,
            max_bandwidth: 1 << 20,
            multifd_channels: 4,
            direct_io: true,
            ..MigrationParameters::default()
        };
        assert_eq!(settings.parameters, expected);
        assert_eq!(super::tests::settings(&[]), Ok(Settings::default()));
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        for (text, reason) in [
            (
                "virtio-blk-pci.num-queues=2",
                "Driver 'virtio-blk-pci' has no global properties; only migration has",
            ),
            (
                "migration.x-event=on",
                "Property 'migration.x-event' not found",
            ),
            (
                "migration.multifd-channel=2",
                "Property 'migration.multifd-channel' not found; did you mean 'multifd-channels'?",
            ),
            (
                "migration.x-events=1",
                "Parameter 'x-events' expects 'on' or 'off'",
            ),
            ("migration.x-events", "Parameter 'property' is missing"),
            (
                "migration.multifd-channels=0",
                "Parameter 'multifd_channels' expects a value between 1 and 255",
            ),
            (
                "migration.multifd-channels=many",
                "Parameter 'multifd-channels' expects a number",
            ),
            (
                "migration.mode=foo",
                "Parameter 'mode' does not accept value 'foo'",
            ),
            (
                "migration.cpr-exec-command=a",
                "Parameter 'cpr-exec-command' is a list; set it with the QMP command \
                 migrate-set-parameters",
            ),
            (
                "migration.announce-max=1",
                "Parameter 'announce-max' cannot be changed from 550: no network device announces \
                 itself; leave it out",
            ),
            (
                "migration.xbzrle=on",
                "Capability 'xbzrle' cannot be switched on: pages are sent whole; leave it off",
            ),
            (
                "driver=migration,property=x-events,value=on,x=1",
                "Property 'global.x' not found",
            ),
        ] {
            assert_eq!(settings(&[text]).unwrap_err(), reason, "{text}");
        }
    }
}

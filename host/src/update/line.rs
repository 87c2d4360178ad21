//! The successor's command line: the running process's without what was meant for its own start.

use std::path::Path;

use baton_migration::HostError;
use serde::Deserialize;
use serde_json::Value;

use crate::cli;

/// Options that say how a guest comes into a process, and how that leaves its terminal. The successor
/// has its own channels, takes the guest as it is found, paused if it is paused, and has no terminal.
const OF_ITS_START: [&str; 3] = ["incoming", "S", "daemonize"];

/// A device of the running machine, as `query-devices` tells of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Device {
    id: String,
    /// Whether it has come since the process was started.
    hotplugged: bool,
    /// The JSON of a `-device` that makes it in the same place.
    arguments: Value,
}

impl Device {
    fn option(&self) -> [String; 2] {
        ["-device".to_owned(), self.arguments.to_string()]
    }
}

/// What a process has by now.
#[derive(Default)]
pub(super) struct Changed<'a> {
    /// What its arguments do not say: options with their values.
    pub(super) added: &'a [(&'a str, Value)],
    /// Ids of character devices that its arguments may say and that have gone.
    pub(super) chardevs_gone: &'a [String],
    /// All its devices.
    pub(super) devices: &'a [Device],
}

/// The arguments of a process that has the same machine as one that was started with `arguments` and has
/// `changed` since. Plugins are looked for in `plugins` instead of where `-plugin` says.
pub(super) fn successor(
    arguments: &[String],
    changed: &Changed<'_>,
    plugins: Option<&Path>,
) -> Result<Vec<String>, HostError> {
    let Changed {
        added,
        chardevs_gone,
        devices,
    } = changed;
    let mut line = Vec::new();
    let options = cli::split(arguments)?;
    let id = |(option, value): &(String, Option<String>)| match value {
        Some(value) if option == "device" => cli::device_id(value),
        _ => None,
    };
    let named = |id: &str| devices.iter().find(|device| device.id == id);
    // Where one has gone the others stay in their places.
    let gone = options.iter().filter_map(id).any(|id| named(&id).is_none());
    for said in options {
        if gone && let Some(id) = id(&said) {
            line.extend(named(&id).into_iter().flat_map(Device::option));
            continue;
        }
        let (option, value) = said;
        let chardev = value.as_deref().filter(|_| option == "chardev");
        let chardev = chardev.and_then(|value| cli::chardev::parse(value).ok());
        if chardev.is_some_and(|chardev| chardevs_gone.iter().any(|id| id == chardev.id.as_str())) {
            continue;
        }
        let own = OF_ITS_START.contains(&option.as_str());
        let replaced = plugins.is_some() && option == "plugin";
        if !own && !replaced {
            line.push(format!("-{option}"));
            line.extend(value);
        }
    }
    let option = |(name, value): &(&str, Value)| [format!("-{name}"), value.to_string()];
    line.extend(added.iter().flat_map(option));
    let come = devices.iter().filter(|device| device.hotplugged);
    line.extend(come.flat_map(Device::option));
    if let Some(folder) = plugins {
        let folder = folder
            .to_str()
            .ok_or("The path of the plugins' folder is not UTF-8")?;
        line.extend(["-plugin".to_owned(), folder.to_owned()]);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(devices: &[Device]) -> Changed<'_> {
        Changed {
            devices,
            ..Changed::default()
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_was_meant_for_the_start_is_left_out_however_it_is_written() {
        let said = "-m 1G -incoming unix:a --incoming=defer -S -kernel -S -append S";
        let line = successor(&words(said), &Changed::default(), None).unwrap();
        assert_eq!(line, words("-m 1G -kernel -S -append S"));
        assert_eq!(successor(&line, &Changed::default(), None).unwrap(), line);
    }

    #[test]
    fn a_folder_of_plugins_takes_the_place_of_all_that_were_said() {
        let said = words("-plugin a -m 1G -plugin=b");
        let line = successor(&said, &Changed::default(), Some(Path::new("/new"))).unwrap();
        assert_eq!(line, words("-m 1G -plugin /new"));
        assert_eq!(
            successor(&line, &Changed::default(), Some(Path::new("/new"))).unwrap(),
            line
        );
    }

    #[test]
    fn a_value_that_may_be_left_out_is_no_option() {
        let said = words("-only-migratable -incoming defer -only-migratable cpr-exec -name x");
        let line = successor(&said, &Changed::default(), None).unwrap();
        let expected = "-only-migratable normal -only-migratable cpr-exec -name x";
        assert_eq!(line, words(expected));
    }

    #[test]
    fn an_option_that_this_program_does_not_know_is_named() {
        let error = successor(&words("-frobnicate yes"), &Changed::default(), None).unwrap_err();
        assert!(error.to_string().contains("-frobnicate"), "{error}");
    }

    #[test]
    fn what_was_added_is_said_before_the_devices_that_name_it() {
        let node = serde_json::json!({ "driver": "file", "node-name": "n", "filename": "/a" });
        let come = [device("c", true)];
        let line = successor(
            &words("-m 1G"),
            &Changed {
                added: &[("blockdev", node.clone())],
                devices: &come,
                ..Changed::default()
            },
            None,
        )
        .unwrap();
        assert_eq!(line[..4], ["-m", "1G", "-blockdev", &node.to_string()]);
        assert_eq!(cli::device_id(&line[5]).unwrap(), "c");
    }

    #[test]
    fn a_character_device_that_has_gone_is_left_out() {
        let gone = ["a".to_owned(), "c".to_owned()];
        let changed = Changed {
            added: &[(
                "chardev",
                serde_json::json!({ "backend": "null", "id": "c" }),
            )],
            chardevs_gone: &gone,
            ..Changed::default()
        };
        let said = words("-chardev null,id=a -chardev null,id=b --chardev null,id=c");
        let line = successor(&said, &changed, None).unwrap();
        assert_eq!(line[..2], words("-chardev null,id=b"));
        assert_eq!(cli::chardev::parse(&line[3]).unwrap().id.as_str(), "c");
        assert_eq!(line.len(), 4);
    }

    fn device(id: &str, hotplugged: bool) -> Device {
        let arguments = serde_json::json!({ "driver": "x", "id": id, "addr": "3.0" });
        Device {
            id: id.to_owned(),
            hotplugged,
            arguments,
        }
    }

    #[test]
    fn devices_that_have_come_are_added_once_and_those_that_have_gone_are_left_out() {
        let said = words("-device x,id=a -device x,id=b -device x");
        let both = [device("a", false), device("b", false)];
        assert_eq!(successor(&said, &with(&both), None).unwrap(), said);

        let come = [both.to_vec(), vec![device("c", true)]].concat();
        let line = successor(&said, &with(&come), None).unwrap();
        assert_eq!(line.len(), said.len() + 2);
        assert_eq!(cli::device_id(line.last().unwrap()).unwrap(), "c");
        // In the successor it is one of the command line.
        let now = [both.to_vec(), vec![device("c", false)]].concat();
        assert_eq!(successor(&line, &with(&now), None).unwrap(), line);

        let line = successor(&line, &with(&[device("b", false)]), None).unwrap();
        let ids: Vec<_> = line
            .iter()
            .filter_map(|word| cli::device_id(word))
            .collect();
        assert_eq!(ids, ["b"]);
        assert!(line[1].contains("\"addr\":\"3.0\""), "{line:?}");
        assert_eq!(line[2..], words("-device x"));
    }
}

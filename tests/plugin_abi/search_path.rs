//! Where plugins are looked for, and what counts when there are two.

use anyhow::Result;
use baton_testkit::native::expect_text;
use baton_testkit::refusal::refusal;
use baton_testkit::scratch::Scratch;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use baton_testkit::fixtures::{baton, fixture, printed};

/// A Baton installed in a folder of its own, where nothing lies beside it.
struct Installed {
    scratch: Scratch,
}

/// The places, in the order in which they are looked at.
const PLACES: [&str; 4] = ["named", "path", "bin", "lib/baton/plugins"];

impl Installed {
    fn new() -> Result<Self> {
        let scratch = Scratch::for_programs()?;
        for place in PLACES {
            fs::create_dir_all(scratch.join(place))?;
        }
        fs::copy(baton()?.get_program(), scratch.join("bin/baton"))?;
        Ok(Self { scratch })
    }

    fn put(&self, name: &str, place: &str) -> Result<PathBuf> {
        let file = self.scratch.join(place).join(format!("{name}.so"));
        fs::copy(fixture(name)?, &file)?;
        Ok(file.canonicalize()?)
    }

    /// `baton -device help` with every place looked at.
    fn help(&self) -> Command {
        let mut command = Command::new(self.scratch.join("bin/baton"));
        command
            .args(["-device", "help", "-plugin"])
            .arg(self.scratch.join("named"));
        command.env("BATON_PLUGIN_PATH", self.scratch.join("path"));
        command
    }
}

#[test]
fn every_place_of_the_search_path_is_looked_at() -> Result<()> {
    for place in PLACES {
        let installed = Installed::new()?;
        installed.put("probe", place)?;
        expect_text(&printed(&mut installed.help())?, &["fixture-probe"])?;
    }
    Ok(())
}

#[test]
fn the_search_path_has_an_order_and_two_plugins_with_one_device_are_refused() -> Result<()> {
    for places in PLACES.windows(2) {
        let installed = Installed::new()?;
        // Not in the order of their names.
        let first = installed.put("twin", places[0])?;
        let second = installed.put("probe", places[1])?;
        let line = refusal(&mut installed.help())?.line()?;
        let both = format!("both '{}' and '{}'", first.display(), second.display());
        expect_text(
            &line,
            &["Device 'fixture-probe'", &both, "leave one of them out"],
        )?;
    }
    Ok(())
}

#[test]
fn the_same_build_in_two_places_is_one_plugin() -> Result<()> {
    let installed = Installed::new()?;
    for place in PLACES {
        installed.put("probe", place)?;
    }
    let text = printed(&mut installed.help())?;
    assert_eq!(text.matches("fixture-probe").count(), 1, "{text}");
    Ok(())
}

#[test]
fn beside_the_program_what_is_no_plugin_is_passed_over_and_elsewhere_it_is_refused() -> Result<()> {
    let installed = Installed::new()?;
    let stranger = |place: &str| installed.scratch.join(place).join("stranger.so");
    fs::write(stranger("bin"), "INPUT(libc.so.6)")?;
    printed(&mut installed.help())?;
    for place in ["named", "path", "lib/baton/plugins"] {
        fs::rename(stranger("bin"), stranger(place))?;
        let line = refusal(&mut installed.help())?.line()?;
        expect_text(&line, &["stranger.so': is not an ELF file"])?;
        fs::rename(stranger(place), stranger("bin"))?;
    }
    Ok(())
}

#[test]
fn a_path_that_is_not_there_is_refused() -> Result<()> {
    let mut command = baton()?;
    command.args(["-device", "help", "-plugin", "/does/not/exist"]);
    let line = refusal(&mut command)?.line()?;
    expect_text(
        &line,
        &["Plugin path '/does/not/exist' cannot be read: No such file"],
    )
}

//! Looks options up.

use super::table::{GROUPS, Opt, REFUSED};

/// All options.
pub(super) fn options() -> impl Iterator<Item = &'static Opt> {
    GROUPS.iter().flat_map(|(_, options)| options.iter())
}

/// The option with this name, be it its own or another.
pub(super) fn option(name: &str) -> Option<&'static Opt> {
    options().find(|option| option.name == name || option.aliases.contains(&name))
}

/// What to do instead of an option of QEMU's that there is not.
pub(super) fn refused(name: &str) -> Option<&'static str> {
    let found = REFUSED.iter().find(|(refused, _)| *refused == name);
    found.map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_there_once() {
        let mut names = BTreeSet::new();
        let own = options().flat_map(|option| option.aliases.iter().chain([&option.name]));
        for name in own.chain(REFUSED.iter().map(|(name, _)| name)) {
            assert!(names.insert(name), "-{name} is there twice");
        }
    }
}

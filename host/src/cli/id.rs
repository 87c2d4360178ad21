//! Ids that the user gives to objects, devices, drives and character devices.

use std::fmt;

/// A well-formed id: a letter, then letters, digits, `-`, `.` and `_` (QEMU's rule).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(
            "Parameter 'id' expects an identifier: letters, digits, '-', '.' and '_', \
             starting with a letter"
                .to_owned(),
        )
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_rules_of_qemu() {
        for good in ["a", "A1", "ram0", "virtio-disk0.1_x"] {
            assert_eq!(good.parse::<Id>().unwrap().as_str(), good);
        }
        for bad in ["", "1a", "-a", "a b", "a/b", "ü"] {
            assert_eq!(
                bad.parse::<Id>().unwrap_err(),
                "Parameter 'id' expects an identifier: letters, digits, '-', '.' and '_', \
                 starting with a letter"
            );
        }
    }
}

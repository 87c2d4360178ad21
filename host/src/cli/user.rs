//! `-runas` and `-run-with user=`: the user whose rights the process keeps.

use nix::unistd::{Gid, Uid, User, getgid, getuid, initgroups, setgid, setgroups, setuid};
use std::ffi::CString;

/// Whom to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// Its name, if it was named; its groups are the process's then.
    name: Option<CString>,
    uid: Uid,
    gid: Gid,
}

impl RunAs {
    /// A user's name, or `UID:GID`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // QEMU's text.
        let unknown = || {
            format!("User \"{text}\" doesn't exist (and is not <uid>:<gid>); name one that does")
        };
        let number = |text: &str| super::number::digits(text, 10)?.try_into().ok();
        if let Some((uid, gid)) = text.split_once(':') {
            let both = number(uid).zip(number(gid));
            let (uid, gid): (u32, u32) = both.ok_or_else(unknown)?;
            // The last number means no change.
            if uid == u32::MAX || gid == u32::MAX {
                return Err(unknown());
            }
            return Ok(Self {
                name: None,
                uid: uid.into(),
                gid: gid.into(),
            });
        }
        let user = User::from_name(text).map_err(|e| format!("Cannot look up '{text}': {e}"))?;
        let user = user.ok_or_else(unknown)?;
        Ok(Self {
            name: Some(CString::new(user.name).map_err(|_| unknown())?),
            uid: user.uid,
            gid: user.gid,
        })
    }

    /// Refuses what [`assume`](Self::assume) could not do, while there is time to say so.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.uid.is_root() {
            return Err("root keeps its rights; name another user, or leave it out".to_owned());
        }
        match getuid().is_root() || self.is_assumed() {
            true => Ok(()),
            false => Err("only root can become another user; leave it out".to_owned()),
        }
    }

    /// Becomes the user, with all threads, for good.
    pub(crate) fn assume(&self) -> Result<(), String> {
        if self.is_assumed() {
            return Ok(());
        }
        // QEMU's texts.
        setgid(self.gid).map_err(|e| format!("Failed to setgid({}): {e}", self.gid))?;
        match &self.name {
            Some(name) => initgroups(name, self.gid)
                .map_err(|e| format!("Failed to initgroups({name:?}, {}): {e}", self.gid))?,
            None => setgroups(&[self.gid])
                .map_err(|e| format!("Failed to setgroups(1, [{}]): {e}", self.gid))?,
        }
        setuid(self.uid).map_err(|e| format!("Failed to setuid({}): {e}", self.uid))?;
        match setuid(Uid::from_raw(0)) {
            Ok(()) => Err("Dropping privileges failed".to_owned()),
            Err(_) => Ok(()),
        }
    }

    fn is_assumed(&self) -> bool {
        (getuid(), getgid()) == (self.uid, self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_or_two_numbers() {
        let root = RunAs::parse("root").unwrap();
        assert_eq!((root.uid.as_raw(), root.gid.as_raw()), (0, 0));
        assert_eq!(root.name.as_deref(), Some(c"root"));
        let numbers = RunAs::parse("12:34").unwrap();
        assert_eq!((numbers.uid.as_raw(), numbers.gid.as_raw()), (12, 34));
        for text in [
            "no-such-user",
            "1:",
            ":1",
            "1:x",
            "-1:1",
            "4294967295:1",
            "1:4294967295",
            "",
        ] {
            assert_eq!(
                RunAs::parse(text).unwrap_err(),
                format!(
                    "User \"{text}\" doesn't exist (and is not <uid>:<gid>); name one that does"
                )
            );
        }
        assert_eq!(
            root.check().unwrap_err(),
            "root keeps its rights; name another user, or leave it out"
        );
    }
}

//! P: whether the owner of a vhost file may have a directory published.

/// What is at the end of a root's path, symbolic links resolved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// Its owner.
    Directory { uid: u32 },
    /// Nothing yet: the owner of the last directory that is there.
    Missing { above_uid: u32 },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// nginx reads files below it.
    Granted,
    /// Another user may create the directory: it is looked at again once it is there.
    Undecided,
    /// It belongs to another user.
    Denied,
}

/// `owner`: the user who owns the vhost file, and who is not root; `None`: a user of no rights.
pub fn access(owner: Option<u32>, found: Found) -> Access {
    match found {
        Found::Directory { uid } if owner == Some(uid) => Access::Granted,
        Found::Directory { .. } => Access::Denied,
        Found::Missing { above_uid } if owner == Some(above_uid) => Access::Granted,
        Found::Missing { .. } => Access::Undecided,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_file_publishes_directories_of_that_user_alone() {
        let directory = |uid| Found::Directory { uid };
        let missing = |above_uid| Found::Missing { above_uid };
        for (owner, found, expected) in [
            (None, directory(0), Access::Denied),
            (None, missing(0), Access::Undecided),
            (Some(34), directory(34), Access::Granted),
            (Some(34), directory(33), Access::Denied),
            (Some(34), directory(0), Access::Denied),
            (Some(34), missing(34), Access::Granted),
            (Some(34), missing(0), Access::Undecided),
            (Some(34), missing(33), Access::Undecided),
        ] {
            assert_eq!(access(owner, found), expected, "{owner:?}, {found:?}");
        }
    }
}

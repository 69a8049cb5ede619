//! Paths of offered files, which come from a peer that may be hostile.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Longest name of a file or folder, in bytes. Most file systems have this limit.
pub(crate) const MAX_NAME_LEN: usize = 255;
/// Largest number of names in a path.
pub(crate) const MAX_DEPTH: usize = 64;

/// Names that Windows gives to devices, with any extension.
const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
/// Characters that Windows allows in no name.
const FORBIDDEN_ON_WINDOWS: [char; 7] = ['<', '>', ':', '"', '|', '?', '*'];

/// Path below the folder of the receiver, from a name to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RelativePath(Vec<String>);

/// Reason for which a path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("a path is empty")]
    Empty,
    #[error("the path {path:?} has {depth} names, and at most {MAX_DEPTH} are allowed")]
    TooDeep { path: String, depth: usize },
    #[error("a name in the path {path:?} is empty")]
    EmptyName { path: String },
    #[error("a name has {len} bytes, and at most {MAX_NAME_LEN} are allowed")]
    NameTooLong { len: usize },
    #[error("the path {path:?} has the name {name:?}, which leads out of its folder")]
    Traversal { path: String, name: String },
    #[error("the name {name:?} has the character {character:?}, which no name may have")]
    Character { name: String, character: char },
    #[error("the name {name:?} is reserved on this system")]
    Reserved { name: String },
    #[error("the name {name:?} is that of a partial file")]
    Partial { name: String },
    #[error("the path {path:?} is offered twice")]
    Twice { path: String },
    #[error("the path {path:?} is offered as a file, and as a folder of files")]
    FileAndFolder { path: String },
}

/// Rules for names that depend on the system of the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRules {
    Unix,
    Windows,
}

impl NameRules {
    /// Rules of this system.
    pub(crate) const OWN: Self = if cfg!(windows) { Self::Windows } else { Self::Unix };
}

impl RelativePath {
    /// Makes a path of names, unchecked.
    pub(crate) fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    /// Returns the last name.
    pub(crate) fn name(&self) -> &str {
        self.0.last().map(String::as_str).unwrap_or_default()
    }

    /// Returns all names, the outermost folder first.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// Returns the path of the folder that holds this path.
    pub(crate) fn parent(&self) -> Self {
        Self(self.0.split_last().map(|(_, folder)| folder.to_vec()).unwrap_or_default())
    }

    /// Returns true for the path of the folder of the receiver itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the path of a name in this folder.
    pub(crate) fn join(mut self, name: String) -> Self {
        self.0.push(name);
        self
    }

    /// Returns the path with something after its last name.
    pub(crate) fn with_suffix(&self, suffix: &str) -> Self {
        let mut names = self.0.clone();
        if let Some(name) = names.last_mut() {
            name.push_str(suffix);
        }
        Self(names)
    }

    /// Returns the path for the file system.
    pub(crate) fn to_path_buf(&self) -> PathBuf {
        self.0.iter().collect()
    }

    /// Checks that the path leads to a place below its folder, under any rules of this system.
    pub(crate) fn check(&self, rules: NameRules) -> Result<(), PathError> {
        if self.0.is_empty() {
            return Err(PathError::Empty);
        }
        if self.0.len() > MAX_DEPTH {
            return Err(PathError::TooDeep { path: self.shortened(), depth: self.0.len() });
        }
        self.0.iter().try_for_each(|name| self.check_name(name, rules))
    }

    fn check_name(&self, name: &str, rules: NameRules) -> Result<(), PathError> {
        if name.is_empty() {
            return Err(PathError::EmptyName { path: self.shortened() });
        }
        if name.len() > MAX_NAME_LEN {
            return Err(PathError::NameTooLong { len: name.len() });
        }
        if name == "." || name == ".." || name.contains(['/', '\\']) {
            return Err(PathError::Traversal { path: self.shortened(), name: name.to_owned() });
        }
        let forbidden = |character: &char| {
            character.is_control()
                || (rules == NameRules::Windows && FORBIDDEN_ON_WINDOWS.contains(character))
        };
        if let Some(character) = name.chars().find(forbidden) {
            return Err(PathError::Character { name: name.to_owned(), character });
        }
        if rules == NameRules::Windows && is_reserved_on_windows(name) {
            return Err(PathError::Reserved { name: name.to_owned() });
        }
        Ok(())
    }

    /// Text for errors, with an end even if the path has none to speak of.
    fn shortened(&self) -> String {
        self.to_string().chars().take(MAX_NAME_LEN).collect()
    }
}

/// Returns true for a name that Windows takes for a device, or of which it drops the end.
fn is_reserved_on_windows(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let is_port = ["COM", "LPT"].iter().any(|kind| {
        let number = stem.strip_prefix(kind).map(|number| number.chars().collect::<Vec<_>>());
        number.is_some_and(|number| matches!(number[..], ['0'..='9' | '¹' | '²' | '³']))
    });
    is_port || DEVICES.contains(&stem.as_str()) || name.ends_with(['.', ' '])
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(names: &[&str], rules: NameRules) -> Result<(), PathError> {
        RelativePath::new(names.iter().map(|name| (*name).to_owned())).check(rules)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for names in [&[".."][..], &["a", "..", "b"], &["."], &["/etc/passwd"], &["a\\b"], &["C:\\x"]] {
            let error = check(names, NameRules::Unix);
            assert!(matches!(error, Err(PathError::Traversal { .. })), "{names:?}: {error:?}");
        }
        assert_eq!(check(&[], NameRules::Unix), Err(PathError::Empty));
        assert_eq!(check(&["a", ""], NameRules::Unix), Err(PathError::EmptyName { path: "a/".into() }));
        assert!(matches!(check(&["a\0b"], NameRules::Unix), Err(PathError::Character { .. })));
        assert!(matches!(check(&["a\x1b[2Jb"], NameRules::Unix), Err(PathError::Character { .. })));
    }

    #[test]
    fn huge_names_and_paths_are_refused() {
        let long = "x".repeat(MAX_NAME_LEN + 1);
        assert_eq!(check(&[&long], NameRules::Unix), Err(PathError::NameTooLong { len: MAX_NAME_LEN + 1 }));
        assert_eq!(check(&[&long[1..]], NameRules::Unix), Ok(()));
        let deep = vec!["x"; MAX_DEPTH + 1];
        assert!(matches!(check(&deep, NameRules::Unix), Err(PathError::TooDeep { .. })));
        assert_eq!(check(&deep[1..], NameRules::Unix), Ok(()));
    }

    #[test]
    fn names_of_devices_are_refused_on_windows_alone() {
        for name in ["NUL", "con.txt", "Com1", "lpt9.tar.gz", "aux ", "name.", "name ", "COM¹"] {
            assert_eq!(check(&[name], NameRules::Unix), Ok(()), "{name}");
            assert!(matches!(check(&[name], NameRules::Windows), Err(PathError::Reserved { .. })), "{name}");
        }
        assert!(matches!(check(&["a:b"], NameRules::Windows), Err(PathError::Character { .. })));
        for name in ["console", "com", "com12", "a.nul", ".hidden"] {
            assert_eq!(check(&[name], NameRules::Windows), Ok(()), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_path_that_passes_stays_below_its_folder(names in prop::collection::vec(any::<String>(), 0..5)) {
            let path = RelativePath::new(names);
            for rules in [NameRules::Unix, NameRules::Windows] {
                if path.check(rules).is_ok() {
                    let names = path.to_path_buf();
                    let is_normal = |part| matches!(part, std::path::Component::Normal(_));
                    prop_assert_eq!(names.components().count(), path.0.len());
                    prop_assert!(names.components().all(is_normal));
                }
            }
        }
    }
}

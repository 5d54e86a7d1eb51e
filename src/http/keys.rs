//! Named keys: a file that holds the digest of each, and what its holder may do.
//!
//! A key is 256 random bits that [`add`] draws; nobody chooses one. Its SHA-256 can therefore stand
//! in the file: what slows guessing a password down (argon2) would only let strangers make the
//! server work, a hash for each request that they send.

use std::{
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::Client,
    files::{self, FileError, hex, sha256},
    preference::Menu,
};

/// Begins the text of a key, so that scanners for leaked secrets find it.
const PREFIX: &str = "lk_";
/// Longest name.
const MAX_NAME: usize = 64;
/// The priorities that requests may have.
pub const PRIORITIES: RangeInclusive<i32> = -100..=100;

/// Whom a key lets in, and to what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What its holder is called in counts and logs.
    pub name: String,
    /// SHA-256 of the key's text, in lower-case hexadecimal.
    pub sha256: String,
    /// Its holder may read the metrics.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    /// Its holder may see and replace the served soup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub soups: bool,
    /// The presets whose models alone its holder may ask for; `None`: any preference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presets: Option<Vec<String>>,
    /// Its requests that may be in progress; `None`: a client's share of the server's places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<usize>,
    /// Tokens of prompts and answers in a minute; `None`: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<usize>,
    /// The least and the highest priority that its requests may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<(i32, i32)>,
}

impl Key {
    /// Its holder.
    pub fn client(&self) -> Client {
        Client::Key(self.name.as_str().into())
    }

    /// The first setting that is not right: its name, its value and what would be right.
    fn fault(&self) -> Option<(&'static str, String, &'static str)> {
        let hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !is_name(&self.name) {
            let expected = "1 to 64 characters of A-Z a-z 0-9 . _ -";
            return Some(("name", format!("{:?}", self.name), expected));
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(hexadecimal) {
            let expected = "64 lower-case hexadecimal digits";
            return Some(("sha256", format!("{:?}", self.sha256), expected));
        }
        let limits =
            [("max_in_flight", self.max_in_flight), ("tokens_per_minute", self.tokens_per_minute)];
        if let Some((what, _)) = limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
            return Some((what, "0".to_owned(), "at least 1"));
        }
        let (least, most) = self.priority?;
        let right = least <= most && PRIORITIES.contains(&least) && PRIORITIES.contains(&most);
        let expected = "[LEAST, MOST] within -100 to 100";
        (!right).then(|| ("priority", format!("[{least}, {most}]"), expected))
    }
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default, rename = "key")]
    keys: Vec<Key>,
}

/// A file of keys that is not right.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not TOML, or a key or a value in it is unknown.
    #[error("{path}: {reason}", path = path.display())]
    Format { path: PathBuf, reason: String },
    /// A key's entry is not right.
    #[error("{path}: key {name:?}: {what} is {got}, expected {expected}", path = path.display())]
    Entry { path: PathBuf, name: String, what: &'static str, got: String, expected: String },
}

/// Reads a file of keys.
pub fn read(path: &Path) -> Result<Vec<Key>, KeyError> {
    parse(path, &fs::read_to_string(path).map_err(FileError::at(path))?)
}

/// The keys in the text of the file at `path`.
fn parse(path: &Path, text: &str) -> Result<Vec<Key>, KeyError> {
    let format = |reason: String| KeyError::Format { path: path.to_owned(), reason };
    let Document { keys } = toml::from_str(text).map_err(|error| format(error.to_string()))?;
    for (index, key) in keys.iter().enumerate() {
        let repeated = keys[..index].iter().any(|other| other.name == key.name);
        let repeated = repeated.then(|| ("name", "that of an earlier key".to_owned(), "another"));
        if let Some((what, got, expected)) = key.fault().or(repeated) {
            return Err(KeyError::Entry {
                path: path.to_owned(),
                name: key.name.clone(),
                what,
                got,
                expected: expected.to_owned(),
            });
        }
    }
    Ok(keys)
}

/// Refuses keys of presets that a soup does not have.
pub fn check_presets(path: &Path, keys: &[Key], menu: &Menu) -> Result<(), KeyError> {
    let known = |preset: &String| menu.presets.iter().any(|(name, _)| name == preset);
    for key in keys {
        let presets = key.presets.iter().flatten();
        if let Some(preset) = presets.into_iter().find(|preset| !known(preset)) {
            let names: Vec<&str> = menu.presets.iter().map(|(name, _)| name.as_str()).collect();
            return Err(KeyError::Entry {
                path: path.to_owned(),
                name: key.name.clone(),
                what: "presets",
                got: format!("{preset:?}"),
                expected: format!("presets of the soup: {}", names.join(", ")),
            });
        }
    }
    Ok(())
}

/// Draws the text of a key, whose digest `key` gets, adds its entry to the file at `path` (made where
/// absent) and returns the text, which is kept nowhere.
pub fn add(path: &Path, key: Key) -> Result<String, KeyError> {
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(FileError::at(path)(error).into()),
    };
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| FileError::at(path)(io::Error::other(error.to_string())))?;
    let text = format!("{PREFIX}{}", hex(&secret));
    let key = Key { sha256: sha256(text.as_bytes()), ..key };
    let entry = toml::to_string(&Document { keys: vec![key] });
    let entry = entry
        .map_err(|error| KeyError::Format { path: path.to_owned(), reason: error.to_string() })?;
    let joined = format!("{before}{}{entry}", if before.is_empty() { "" } else { "\n" });
    // A file that was right stays so.
    parse(path, &joined)?;
    files::write(path, joined.as_bytes())?;
    Ok(text)
}

fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(known)
}

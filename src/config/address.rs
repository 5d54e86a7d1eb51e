//! Addresses of soups that are not directories of this machine.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `https://HOST[:PORT]/PATH`, or the same over `http`. Nothing
/// in it needs an escape, so it has one way to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoupAddress {
    pub scheme: Scheme,
    /// Bucket, or host with its port.
    pub place: String,
    /// Names below the place.
    pub path: Vec<String>,
}

/// What is spoken to the place of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    S3,
    Gs,
    Https,
    Http,
}

const SCHEMES: [(&str, Scheme); 4] =
    [("s3", Scheme::S3), ("gs", Scheme::Gs), ("https", Scheme::Https), ("http", Scheme::Http)];

impl SoupAddress {
    /// The form of an address.
    pub const EXPECTED: &str = "s3://BUCKET/PATH, gs://BUCKET/PATH or https://HOST/PATH, with names of \
                                the characters A-Z a-z 0-9 . _ - + = @ ~";

    /// Whether a text is meant as an address rather than as a directory.
    pub fn is_meant(text: &str) -> bool {
        text.contains("://")
    }

    /// Whether this is `prefix` or lies below it.
    pub fn is_within(&self, prefix: &Self) -> bool {
        let same_place = self.scheme == prefix.scheme && self.place == prefix.place;
        same_place && self.path.starts_with(&prefix.path)
    }
}

impl FromStr for SoupAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let (scheme, rest) = text.split_once("://")?;
            let (_, scheme) = SCHEMES.into_iter().find(|(name, _)| *name == scheme)?;
            let mut parts = rest.strip_suffix('/').unwrap_or(rest).split('/').map(str::to_owned);
            let place = parts.next()?;
            let (name, port) = place.split_once(':').unwrap_or((&place, "0"));
            let of_host =
                |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
            let named = !name.is_empty() && !name.starts_with('.') && name.bytes().all(of_host);
            let at_port = port.parse::<u16>().is_ok();
            let of_path = |c: u8| c.is_ascii_alphanumeric() || b"._-+=@~".contains(&c);
            let path: Vec<String> = parts.collect();
            let plain = |part: &String| {
                !matches!(part.as_str(), "" | "." | "..") && part.bytes().all(of_path)
            };
            (named && at_port && path.iter().all(plain)).then_some(Self { scheme, place, path })
        };
        parsed()
            .ok_or_else(|| format!("{text:?} is no address of a soup, expected {}", Self::EXPECTED))
    }
}

impl fmt::Display for SoupAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme);
        write!(f, "{}://{}", scheme.map_or("", |(name, _)| name), self.place)?;
        self.path.iter().try_for_each(|part| write!(f, "/{part}"))
    }
}

impl<'de> Deserialize<'de> for SoupAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling_and_is_refused_in_any_other() {
        for text in [
            "s3://bucket",
            "s3://my.bucket-1/soups/summaries-2",
            "gs://b_1/a",
            "https://example.org:8443/a/v=1/b@c~d+e",
            "http://127.0.0.1:9000/x",
        ] {
            assert_eq!(text.parse::<SoupAddress>().unwrap().to_string(), text);
        }
        assert_eq!("s3://b/a/".parse::<SoupAddress>().unwrap().to_string(), "s3://b/a");
        for text in [
            "",
            "soups/a",
            "file:///etc",
            "S3://b/a",
            "s3:///a",
            "s3://",
            "s3://b//a",
            "s3://b/../a",
            "s3://b/./a",
            "s3://b/a?x=1",
            "s3://b/a#x",
            "s3://b/%2e%2e/a",
            "s3://b/a b",
            "s3://b/a,b",
            "s3://b/a\\b",
            "https://user@example.org/a",
            "https://user:1@example.org/a",
            "https://example.org:99999/a",
            "https://[::1]/a",
            "https://EXAMPLE.org/a",
            "https://.org/a",
            "ftp://example.org/a",
        ] {
            let error = text.parse::<SoupAddress>().unwrap_err();
            assert!(error.contains("expected s3://BUCKET/PATH"), "{error}");
        }
    }

    #[test]
    fn a_prefix_ends_where_a_name_ends() {
        let within = |text: &str, prefix: &str| {
            text.parse::<SoupAddress>().unwrap().is_within(&prefix.parse().unwrap())
        };
        for (text, prefix, expected) in [
            ("s3://b/soups/a", "s3://b/soups", true),
            ("s3://b/soups/a", "s3://b/soups/", true),
            ("s3://b/soups", "s3://b/soups", true),
            ("s3://b/soups/a", "s3://b", true),
            ("s3://b/soups-2/a", "s3://b/soups", false),
            ("s3://bucket/soups/a", "s3://b/soups", false),
            ("gs://b/soups/a", "s3://b/soups", false),
            ("http://h/soups/a", "https://h/soups", false),
            ("https://h:81/soups/a", "https://h/soups", false),
            ("https://h/a", "https://h/soups", false),
        ] {
            assert_eq!(within(text, prefix), expected, "{text} within {prefix}");
        }
    }
}

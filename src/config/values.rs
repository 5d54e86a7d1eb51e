//! Types of option values.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// How preferences are executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeMode {
    /// Requests that can be repeated run mixed, those for pinned presets fused; the cost model chooses
    /// for all others.
    #[default]
    Auto,
    /// Always materialise the merged weights.
    Fused,
    /// Always per-row coefficients.
    Mixed,
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// In f32 for f32 weights, else bf16; on a GPU as the weights.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit integers with a scale for each token and head.
    Int8,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where weight files lie once they are opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residence {
    /// In memory of the process, in huge pages where the system gives them: nothing that is done to
    /// the files reaches it.
    Copied,
    /// In the page cache, shared with other processes; a file that is shortened ends the process.
    #[default]
    Mapped,
}

/// What is done when the engine's thread ends or hangs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// An engine that ended is started again; one that hangs is waited for.
    #[default]
    Restart,
    /// The process ends with an error.
    Exit,
}

impl FromStr for OnFailure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false)
    }
}

impl FromStr for Residence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false)
    }
}

impl FromStr for MergeMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false)
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false)
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false)
    }
}

/// Which traces are recorded, as OpenTelemetry's samplers say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// What a caller has decided is kept.
    pub parent_based: bool,
    /// Share of the others that are recorded, 0 to 1; `None`: as another option says.
    pub share: Option<f64>,
}

impl FromStr for Sampler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (parent_based, root) = match text.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, text),
        };
        let share = match root {
            "always_on" => Some(1.0),
            "always_off" => Some(0.0),
            "traceidratio" => None,
            _ => {
                return Err(format!(
                    "{text:?} is not a sampler; expected always_on, always_off or traceidratio, or \
                     one of them after parentbased_"
                ));
            }
        };
        Ok(Self { parent_based, share })
    }
}

impl<'de> Deserialize<'de> for Sampler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A number of bytes, written as `1073741824`, `512MiB`, `2GiB` or `1.5GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("{text:?} is not a size; write bytes as 1073741824, 512MiB, 2GiB or 1.5GB");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            _ => return Err(refuse()),
        };
        let digits = digits.trim();
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(unit).map(Self).ok_or_else(refuse);
        }
        let bytes = digits.parse::<f64>().map_err(|_| refuse())? * unit as f64;
        if bytes.is_finite() && (0.0..9e18).contains(&bytes) {
            Ok(Self(bytes as u64))
        } else {
            Err(refuse())
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// The device that computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Processor {
    /// The processor's cores.
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for Processor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.parse::<u8>().is_ok() => {
                Ok(Self::Cuda(number.parse().unwrap_or_default()))
            }
            _ => Err(format!("{text:?} is not a device; expected cpu, cuda or cuda:N")),
        }
    }
}

impl<'de> Deserialize<'de> for Processor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A bearer key; its text appears neither in `Debug` output nor in logs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(pub String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

impl FromStr for ApiKey {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_with_units_and_never_overflow() {
        let parse = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        assert_eq!(parse("1073741824"), Ok(1 << 30));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        assert_eq!(parse("1.5GB"), Ok(1_500_000_000));
        for bad in ["", "GiB", "-1", "12XB", "99999999999TiB", "nan", "1e400"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_named_with_an_optional_number() {
        for (text, device) in
            [("cpu", Processor::Cpu), ("cuda", Processor::Cuda(0)), ("cuda:3", Processor::Cuda(3))]
        {
            assert_eq!(text.parse(), Ok(device));
        }
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""] {
            assert!(text.parse::<Processor>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }
}

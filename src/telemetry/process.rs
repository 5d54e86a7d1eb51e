//! The process as Prometheus' own client libraries report it, read from `/proc`. Elsewhere than on
//! Linux there is nothing to read.

use std::{fmt::Write, fs};

/// Kernel clock ticks per second in `/proc/PID/stat`: 100 on every Linux.
const TICKS: f64 = 100.0;

/// A number of the process, by the name that Prometheus gives it.
struct Fact {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: Option<f64>,
}

/// The text exposition of `process_*`.
pub fn render() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let mut text = String::new();
    for Fact { name, kind, help, value } in facts(&stat) {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    text
}

fn facts(stat: &str) -> [Fact; 7] {
    // The second field is the name of the program, in parentheses, which may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    // Numbered as in proc(5), in which the field after the name is the third.
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let sum = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
    let gauge = |name, help, value| Fact { name, kind: "gauge", help, value };
    [
        Fact {
            name: "process_cpu_seconds_total",
            kind: "counter",
            help: "User and system time of the process, seconds.",
            value: sum(field(14), field(15)).map(|ticks| ticks / TICKS),
        },
        gauge(
            "process_resident_memory_bytes",
            "Resident memory, bytes; mapped weights count where they are in memory.",
            status("VmRSS:").map(|kib| kib * 1024.0),
        ),
        gauge("process_virtual_memory_bytes", "Virtual memory, bytes.", field(23)),
        gauge(
            "process_start_time_seconds",
            "Start of the process, seconds since 1970.",
            sum(boot(), field(22).map(|ticks| ticks / TICKS)),
        ),
        gauge("process_threads", "Threads of the process.", field(20)),
        gauge(
            "process_open_fds",
            "Open file descriptors.",
            fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64),
        ),
        gauge("process_max_fds", "Most open file descriptors.", limit("Max open files")),
    ]
}

/// A line of `/proc/self/status`, KiB.
fn status(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// When the machine was started, seconds since 1970.
fn boot() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// A soft limit of the process.
fn limit(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_may_hold_anything() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 7 0 1000 4096 9";
        let facts = facts(&format!("12 (a b) c) {rest}"));
        let value = |name: &str| facts.iter().find(|fact| fact.name == name).unwrap().value;
        assert_eq!(value("process_cpu_seconds_total"), Some(2.0));
        assert_eq!(value("process_threads"), Some(7.0));
        assert_eq!(value("process_virtual_memory_bytes"), Some(4096.0));
    }
}

//! The memory of the process as a whole.

use ladle::config::{ByteSize, ServeOptions};
use serde_json::Value;

use crate::{
    keys::failed,
    process::Process,
    server::{Server, copied, greedy, options},
};

const MIB: u64 = 1 << 20;

#[test]
fn a_soup_that_memory_cannot_hold_is_refused_with_the_sum() {
    let error = failed(ServeOptions { max_memory: Some(ByteSize(64 * MIB)), ..options() });
    for part in [
        "max_memory is 64 MiB, expected at least ",
        "weights 1 MiB",
        "keys and values 16 MiB",
        "merged models 64 MiB",
        "max_in_flight",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // What it says would do does.
    let needed = error.split("at least ").nth(1).unwrap().split(' ').next().unwrap();
    let enough = ByteSize(needed.parse::<u64>().unwrap() * MIB);
    Server::start(ServeOptions { max_memory: Some(enough), ..options() }).generate(greedy());
    let less = ByteSize(enough.0 - 2 * MIB);
    failed(ServeOptions { max_memory: Some(less), ..options() });
}

#[test]
fn budgets_follow_the_memory_that_there_is() {
    let blocks = |max_memory: u64| {
        let max_memory = Some(ByteSize(max_memory));
        let (kv_cache, merge_cache) = (None, None);
        let server = Server::start(ServeOptions { max_memory, kv_cache, merge_cache, ..options() });
        server.generate(greedy());
        server.metric("ladle_kv_blocks")
    };
    let (little, much) = (blocks(640 * MIB), blocks(1 << 40));
    assert!(0.0 < little && little < much / 2.0, "{little} of {much}");
}

#[test]
fn the_log_says_how_memory_is_divided() {
    let soup = copied("soup-tiny");
    let process = Process::start(soup.path(), &["--max-memory", "1GiB"]);
    let line: Value = serde_json::from_str(&process.wait_for(&["memory is divided"])).unwrap();
    let field = |name: &str| line["fields"][name].as_u64().unwrap();
    let parts =
        ["weights", "process", "activations", "bodies", "requests", "kv_cache", "merge_cache"];
    assert_eq!((field("max_memory"), field("kv_cache")), (1 << 30, 16 * MIB));
    assert_eq!(field("merge_cache"), 64 * MIB);
    let sum: u64 = parts.iter().map(|name| field(name)).sum();
    assert!(sum <= 1 << 30, "{line}");
    assert!(field("bodies") >= 64 * MIB && field("weights") > 0, "{line}");
}

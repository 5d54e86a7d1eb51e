//! The sources under test, as they stand in `src/`, with the standard library replaced by the one of
//! `src/standard.rs`; without their own tests, which start real threads.

use std::{env, fs, path::Path};

/// Source, and what is replaced in it beside the standard library. Each text must be there.
const SOURCES: [(&str, &[(&str, &str)]); 4] = [
    // Spinning shows nothing new after the second time, and each time is a step of the schedule.
    ("kernels/cpu/pool.rs", &[("SPINS: u32 = 4_000", "SPINS: u32 = 2")]),
    ("merge/cache.rs", &[("mod event;\n", "")]),
    ("merge/cache/event.rs", &[]),
    // Methods on `Arc` of the type itself need the real one.
    ("engine/places.rs", &[("sync::{Arc, ", "sync::{StdArc as Arc, ")]),
];

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets it");
    for (source, replacements) in SOURCES {
        let path = Path::new("../src").join(source);
        println!("cargo::rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path).expect("the source is there");
        let (text, _) = text.split_once("#[cfg(test)]\nmod tests").unwrap_or((&text, ""));
        let mut text = text.replace("//!", "//").replace("std::", "crate::standard::");
        for (from, to) in replacements {
            assert!(text.contains(from), "{source} no longer has {from:?}");
            text = text.replace(from, to);
        }
        fs::write(Path::new(&out).join(source.replace('/', "_")), text).expect("written");
    }
}

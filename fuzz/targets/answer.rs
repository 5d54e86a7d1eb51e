//! The text of an answer in pieces: what tokens spell, up to the first stop string, however it is cut.
#![no_main]

use std::{path::Path, sync::OnceLock};

use ladle::{engine::answer::Answer, tokenizer::Tokenizer};
use libfuzzer_sys::fuzz_target;

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/soup-tiny/base");
    TOKENIZER.get_or_init(|| Tokenizer::from_dir(&base).expect("a tokenizer"))
}

fuzz_target!(|input: (Vec<u16>, Vec<String>)| {
    let (ids, mut stops) = input;
    stops.retain(|stop| !stop.is_empty());
    let tokenizer = tokenizer();
    let vocabulary = tokenizer.vocab_size() as u32;
    let ids: Vec<u32> = ids.iter().map(|&id| u32::from(id) % vocabulary).collect();
    if ids.is_empty() {
        return;
    }
    let mut answer = Answer::new(tokenizer, &ids[..1], stops.clone(), None, ids.len());
    let (mut text, mut ended) = (String::new(), None);
    for &id in &ids {
        let (more, end) = answer.accept(id);
        text.push_str(&more);
        ended = end;
        if ended.is_some() {
            break;
        }
    }
    let ended = ended.expect("it ends at its length at the latest");
    let shown = ids.iter().filter(|&&id| !tokenizer.is_special(id));
    let bytes: Vec<u8> = shown.flat_map(|&id| tokenizer.bytes(id)).collect();
    let whole = String::from_utf8_lossy(&bytes);
    match ended.stop {
        None => assert_eq!(text, whole),
        Some(stop) => {
            assert!(stops.contains(&stop));
            // The last character of what was generated may be open.
            assert!(whole.starts_with(text.trim_end_matches('\u{fffd}')), "{text:?} of {whole:?}");
        }
    }
    assert!(stops.iter().all(|stop| !text.contains(stop)), "{text:?} holds a stop string");
});

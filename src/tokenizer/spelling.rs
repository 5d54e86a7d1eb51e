//! Spelling of bytes in a vocabulary: byte-level or SentencePiece.

use serde_json::Value;

/// How the bytes of a token are spelled in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// One character a byte, in GPT-2's printable alphabet.
    ByteLevel,
    /// `▁` for a space.
    SentencePiece {
        first_space: FirstSpace,
        /// `<0xNN>` stands for a byte that has no token of its own.
        byte_fallback: bool,
    },
}

/// How decoding treats the space that encoding put before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstSpace {
    /// It stays, because encoding puts none.
    Kept,
    /// One space is dropped (decoder `Strip`).
    OneDropped,
    /// All `▁` of the first token are dropped (decoder `Metaspace`).
    AllDropped,
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 characters stand for
/// themselves, the other 68 bytes follow from U+0100 in order.
pub fn byte_level_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte of a token spelled `<0xNN>`.
pub fn byte_fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Reads the decoder's description; `None` for one that is not supported.
pub fn spelling(decoder: &Value) -> Option<Spelling> {
    let steps = match decoder["type"].as_str()? {
        "Sequence" => decoder["decoders"].as_array()?.as_slice(),
        _ => std::slice::from_ref(decoder),
    };
    if let [only] = steps
        && only["type"] == "ByteLevel"
    {
        return Some(Spelling::ByteLevel);
    }
    let (mut first_space, mut byte_fallback) = (FirstSpace::Kept, false);
    let (mut spaces, mut fused) = (false, false);
    for step in steps {
        match step["type"].as_str()? {
            "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => {
                spaces = true;
            }
            // These read token by token, so what follows `Fuse` would mean something else.
            "ByteFallback" if !fused => byte_fallback = true,
            "Metaspace" if !fused && step["replacement"] == "▁" => {
                spaces = true;
                if step["prepend_scheme"] != "never" {
                    first_space = FirstSpace::AllDropped;
                }
            }
            "Fuse" => fused = true,
            "Strip" if fused && strips_one_space(step) => first_space = FirstSpace::OneDropped,
            _ => return None,
        }
    }
    spaces.then_some(Spelling::SentencePiece { first_space, byte_fallback })
}

/// Whether a step drops one space at the beginning.
fn strips_one_space(step: &Value) -> bool {
    step["content"] == " " && step["start"] == 1 && step["stop"] == 0
}

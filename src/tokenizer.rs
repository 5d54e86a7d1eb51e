//! Text and token ids: a checked `tokenizer.json`, and text that streams out one token at a time.

mod compare;
mod files;
mod plain;
mod settings;
mod spelling;

use std::{collections::HashSet, fmt, path::Path, sync::Arc};

use serde_json::Value;

pub use files::TokenizerError;
use files::optional_json;
pub use settings::read as settings;
use spelling::{FirstSpace, Spelling, byte_fallback_byte, byte_level_byte, spelling};

/// Bytes of a text that are encoded at a time to see whether it is too long.
const PIECE: usize = 32 << 10;
/// Tokens that a text may have more because it was cut. A cut changes the few tokens around it.
const CUT: usize = 128;

/// A loaded tokenizer; clones share it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    spelling: Spelling,
    special: HashSet<u32>,
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a Hugging Face model directory, and what `tokenizer_config.json`
    /// says about its tokens. The ids that end a text are those
    /// named by `generation_config.json`, `config.json` and `tokenizer_config.json`, where present.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path)
            .map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        let format = |reason: String| TokenizerError::Format { path: path.clone(), reason };
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| format(e.to_string()))?;
        // Some publish the settings of their training run; a prompt is never cut or padded silently.
        tokenizer.with_truncation(None).map_err(|e| format(e.to_string()))?;
        tokenizer.with_padding(None);
        let decoder =
            serde_json::to_value(tokenizer.get_decoder()).map_err(|e| format(e.to_string()))?;
        let spelling = spelling(&decoder).ok_or_else(|| TokenizerError::Decoder {
            path: path.clone(),
            got: decoder.to_string(),
        })?;
        let special_ids = |tokenizer: &tokenizers::Tokenizer| {
            let tokens = tokenizer.get_added_tokens_decoder().into_iter();
            tokens.filter_map(|(id, token)| token.special.then_some(id)).collect::<HashSet<_>>()
        };
        // A token that was special once is never shown.
        let mut special = special_ids(&tokenizer);
        let settings = settings::read(dir)?;
        settings::apply(&mut tokenizer, dir, &settings)?;
        special.extend(special_ids(&tokenizer));
        let named = |key: &str| token_name(&settings[key]).and_then(|t| tokenizer.token_to_id(t));
        let bos = named("bos_token");
        let mut eos = Vec::new();
        for file in ["generation_config.json", "config.json"] {
            let path = dir.join(file);
            let value = &optional_json(&path)?["eos_token_id"];
            eos.extend(token_ids(value).ok_or_else(|| TokenizerError::Format {
                path,
                reason: format!("eos_token_id is {value}, must be a token id or a list of them"),
            })?);
        }
        eos.extend(named("eos_token"));
        let mut seen = HashSet::new();
        eos.retain(|id| seen.insert(*id));
        let loaded = Self(Arc::new(Inner { tokenizer, spelling, special, bos, eos }));
        loaded.check_bos(&settings, &dir.join("tokenizer_config.json"))?;
        Ok(loaded)
    }

    /// Holds `tokenizer_config.json` against the post-processor, which alone decides on a
    /// begin-of-sequence token, as in transformers 5. Where transformers 4 did otherwise (it honoured
    /// `add_bos_token` in Llama's classes, true by default) the log says so; a class that adds the
    /// token whatever the post-processor says is refused where that does not.
    fn check_bos(&self, settings: &Value, path: &Path) -> Result<(), TokenizerError> {
        let Some(bos) = self.bos() else { return Ok(()) };
        let adds = self.encode("", true)?.first() == Some(&bos);
        let class = settings["tokenizer_class"].as_str().unwrap_or_default();
        let class = class.strip_suffix("Fast").unwrap_or(class);
        if class == "CodeLlamaTokenizer" && !adds {
            let reason = "tokenizer_class CodeLlamaTokenizer puts a begin-of-sequence token before \
                          every text, but the post_processor of tokenizer.json adds none";
            return Err(TokenizerError::Format { path: path.into(), reason: reason.into() });
        }
        let said = settings["add_bos_token"].as_bool();
        let before = said.or((class == "LlamaTokenizer").then_some(true));
        if before.is_some_and(|before| before != adds) {
            tracing::warn!(
                path = %path.display(), class, add_bos_token = ?said, adds,
                "the post-processor of tokenizer.json decides on the begin-of-sequence token, as in \
                 transformers 5; transformers 4 did the opposite here"
            );
        }
        Ok(())
    }

    /// The ids of `text`. Special tokens written out in the text become their ids; `add_special`
    /// also adds what the tokenizer puts around a text (such as a begin-of-sequence token). A
    /// rendered chat template holds its own special tokens: encode it without.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .0
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|e| TokenizerError::Encode { bytes: text.len(), reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`encode`](Self::encode) of a text in which `mark` stands within each special token that is
    /// plain text, without a second begin-of-sequence token where `special` would put one before
    /// a text that begins with it.
    pub fn encode_prompt(
        &self,
        text: &str,
        mark: Option<char>,
        special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode_with(text, mark, special)?;
        if special
            && let [first, second, ..] = ids.as_slice()
            && first == second
            && self.is_special(*first)
            && self.encode_with(text, mark, false)?.first() == Some(first)
        {
            tracing::info!("a prompt begins with the begin-of-sequence token: none is added");
            ids.remove(0);
        }
        Ok(ids)
    }

    /// [`encode`](Self::encode), or with a mark [`encode_marked`](Self::encode_marked).
    fn encode_with(
        &self,
        text: &str,
        mark: Option<char>,
        special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        match mark {
            None => self.encode(text, special),
            Some(mark) => self.encode_marked(text, mark, special),
        }
    }

    /// Whether `text` has more than `most` tokens, as far as that can be told without encoding all
    /// of it: a long text is encoded piece by piece until there are too many, so that time and
    /// memory follow `most` and not its length. `next` is asked before each piece. A text that is
    /// just a little too long may pass.
    pub fn exceeds<E: From<TokenizerError>>(
        &self,
        text: &str,
        mark: Option<char>,
        most: usize,
        mut next: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let (mut rest, mut counted, mut allowed) = (text, 0, most);
        while rest.len() > PIECE {
            next()?;
            let (piece, further) = rest.split_at(rest.floor_char_boundary(PIECE));
            counted += self.encode_with(piece, mark, false)?.len();
            allowed = allowed.saturating_add(CUT);
            if counted > allowed {
                return Ok(true);
            }
            rest = further;
        }
        Ok(false)
    }

    /// Where each of `ids`, the tokens of `text`, starts in it, in characters. Tokens that were put
    /// around the text start where it begins or ends.
    pub fn offsets(&self, text: &str, ids: &[u32]) -> Result<Vec<usize>, TokenizerError> {
        let encoding = self
            .0
            .tokenizer
            .encode_char_offsets(text, false)
            .map_err(|e| TokenizerError::Encode { bytes: text.len(), reason: e.to_string() })?;
        let own = encoding.get_ids();
        let before = ids.windows(own.len().max(1)).position(|part| part == own).unwrap_or(0);
        let mut offsets = vec![0; before];
        match self.decode(own, false) == text {
            true => offsets.extend(self.decoded_offsets(own)),
            // The text was normalised. These offsets may leave out the space before a word.
            false => offsets.extend(encoding.get_offsets().iter().map(|(start, _)| *start)),
        }
        offsets.resize(ids.len(), text.chars().count());
        Ok(offsets)
    }

    /// Where each of `ids` starts in their text, special tokens included, in characters.
    pub fn decoded_offsets(&self, ids: &[u32]) -> Vec<usize> {
        let mut decoder = TextDecoder::new(self, false);
        let start = |offset: &mut usize, id: &u32| {
            let start = *offset;
            *offset += decoder.push(*id).chars().count();
            Some(start)
        };
        ids.iter().scan(0, start).collect()
    }

    /// The text of `ids`, what a [`TextDecoder`] gives for them piece by piece. Bytes that are not
    /// UTF-8 become U+FFFD; ids outside the vocabulary (padding rows of an embedding) are skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut decoder = TextDecoder::new(self, skip_special);
        let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// The token of `id` as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(id)
    }

    /// The id of a token, spelled as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.0.tokenizer.token_to_id(token)
    }

    /// Number of tokens, added ones included. The embedding may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.0.tokenizer.get_vocab_size(true)
    }

    /// Whether `id` is a special (control) token.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// The begin-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// Ids that end a text.
    pub fn eos(&self) -> &[u32] {
        &self.0.eos
    }

    /// The bytes that `id` stands for; part of a character where the vocabulary splits one.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.push_bytes(id, &mut bytes);
        bytes
    }

    /// The text of a token that is not part of an answer: a special token as the vocabulary spells
    /// it, any other by its bytes.
    pub fn control_text(&self, id: u32) -> String {
        if self.is_special(id) {
            return self.token(id).unwrap_or_default();
        }
        String::from_utf8_lossy(&self.bytes(id)).into_owned()
    }

    /// Appends the bytes that `id` stands for.
    fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        let Some(token) = self.token(id) else { return };
        match self.0.spelling {
            Spelling::ByteLevel => {
                let start = out.len();
                for character in token.chars() {
                    let Some(byte) = byte_level_byte(character) else {
                        // An added token that is written as plain text.
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    };
                    out.push(byte);
                }
            }
            Spelling::SentencePiece { byte_fallback, .. } => {
                match byte_fallback.then(|| byte_fallback_byte(&token)).flatten() {
                    Some(byte) => out.push(byte),
                    None => out.extend_from_slice(token.replace('▁', " ").as_bytes()),
                }
            }
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokenizer({} tokens, {:?})", self.vocab_size(), self.0.spelling)
    }
}

/// Tokens in, text out as soon as it is whole UTF-8. The pieces joined are the text of all tokens.
#[derive(Debug, Clone)]
pub struct TextDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// What to do to the next token's first space.
    first_space: FirstSpace,
    /// Bytes of a character that has not ended yet: 3 at most between calls.
    pending: Vec<u8>,
}

impl TextDecoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let first_space = match tokenizer.0.spelling {
            Spelling::ByteLevel => FirstSpace::Kept,
            Spelling::SentencePiece { first_space, .. } => first_space,
        };
        Self { tokenizer: tokenizer.clone(), skip_special, first_space, pending: Vec::new() }
    }

    /// A decoder of what follows `prompt`: the space between them is kept, which a decoder at the
    /// start of a text drops.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Self {
        let mut decoder = Self::new(tokenizer, skip_special);
        let has_text = |id: &u32| {
            !(skip_special && tokenizer.is_special(*id)) && tokenizer.token(*id).is_some()
        };
        if decoder.first_space != FirstSpace::Kept && prompt.iter().any(has_text) {
            decoder.first_space = FirstSpace::Kept;
        }
        decoder
    }

    /// The text that `id` completes; empty while a character is still open.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let start = self.pending.len();
        self.tokenizer.push_bytes(id, &mut self.pending);
        if self.pending.len() > start {
            match std::mem::replace(&mut self.first_space, FirstSpace::Kept) {
                FirstSpace::Kept => {}
                FirstSpace::OneDropped => {
                    if self.pending.first() == Some(&b' ') {
                        self.pending.remove(0);
                    }
                }
                FirstSpace::AllDropped => self.pending.retain(|byte| *byte != b' '),
            }
        }
        self.take_whole()
    }

    /// The text left when no more tokens come: an open character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    /// Removes from `pending` all that no later byte can change, and returns it as text.
    fn take_whole(&mut self) -> String {
        let mut text = String::with_capacity(self.pending.len());
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            let invalid = chunk.invalid();
            let open = taken + invalid.len() == self.pending.len()
                && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if open {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                taken += invalid.len();
            }
        }
        self.pending.drain(..taken);
        text
    }
}

/// A token in `tokenizer_config.json`: its text, or an object that carries it.
fn token_name(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// Ids in a configuration: none, one or a list.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        value => Some(vec![id(value)?]),
    }
}

//! Text in which special tokens that are written out stay text.

use tokenizers::{Model, OffsetType, PreTokenizer, Result, Token};

use super::{Tokenizer, TokenizerError};

impl Tokenizer {
    /// The tokens that are matched in a text wherever it spells them, and whether each is special.
    pub fn added_tokens(&self) -> Vec<(String, bool)> {
        let added = self.0.tokenizer.get_added_tokens_decoder().into_iter();
        added.map(|(id, token)| (token.content, token.special || self.is_special(id))).collect()
    }

    /// [`encode`](Self::encode) of a text in which `mark` stands within each special token that is
    /// plain text. The mark keeps it from being matched and is gone before text is cut into words,
    /// so the tokens are those of the text without it.
    pub fn encode_marked(
        &self,
        text: &str,
        mark: char,
        add_special: bool,
    ) -> std::result::Result<Vec<u32>, TokenizerError> {
        self.try_encode_marked(text, mark, add_special)
            .map_err(|e| TokenizerError::Encode { bytes: text.len(), reason: e.to_string() })
    }

    fn try_encode_marked(&self, text: &str, mark: char, add_special: bool) -> Result<Vec<u32>> {
        let tokenizer = &self.0.tokenizer;
        let added = tokenizer.get_added_vocabulary();
        let mut parts = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        parts.normalize(|part| {
            part.filter(|character| character != mark);
            Ok(())
        })?;
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.plain_word(part.get()))?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None)?;
        Ok(tokenizer.post_process(encoding, None, add_special)?.get_ids().to_vec())
    }

    /// The tokens of a word. Where the model itself has a special token for it, those of its
    /// characters.
    fn plain_word(&self, word: &str) -> Result<Vec<Token>> {
        let model = self.0.tokenizer.get_model();
        let tokens = model.tokenize(word)?;
        if !tokens.iter().any(|token| self.is_special(token.id)) {
            return Ok(tokens);
        }
        let characters = word.char_indices().map(|(at, character)| {
            let end = at + character.len_utf8();
            model.tokenize(&word[at..end])
        });
        Ok(characters.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

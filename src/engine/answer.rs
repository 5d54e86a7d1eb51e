//! From tokens to the text of an answer: whole characters only, stop strings across token borders,
//! and when it ends.

use std::{ops::Range, sync::Arc};

use super::request::FinishReason;
use crate::tokenizer::{TextDecoder, Tokenizer};

/// Finds stop strings in text that arrives in pieces. Text is held back only as long as it may be
/// the start of a stop string.
///
/// Special tokens are hidden: their text is never delivered, but a stop string may be or hold it. A
/// stop string is met in the text with hidden pieces and in the text without.
#[derive(Debug, Clone)]
pub struct StopFilter {
    stops: Vec<String>,
    /// Text, hidden pieces included, that may be the start of a stop string.
    held: String,
    /// The parts of `held` that are hidden: ascending, not empty.
    hidden: Vec<Range<usize>>,
}

impl StopFilter {
    /// A filter for `stops`, none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), hidden: Vec::new() }
    }

    /// Takes more text; returns the text that cannot be part of a stop string and, when a stop string
    /// was met (the first to start; of those the first listed), its index. The text ends before it.
    pub fn push(&mut self, text: &str) -> (String, Option<usize>) {
        self.held.push_str(text);
        self.advance()
    }

    /// Takes the text of a special token, which is only compared.
    pub fn push_hidden(&mut self, text: &str) -> (String, Option<usize>) {
        let start = self.held.len();
        self.held.push_str(text);
        if self.held.len() > start {
            self.hidden.push(start..self.held.len());
        }
        self.advance()
    }

    /// The text held back; called at the end of the answer.
    pub fn finish(&mut self) -> String {
        self.deliver(self.held.len())
    }

    fn advance(&mut self) -> (String, Option<usize>) {
        let shown = (!self.hidden.is_empty()).then(|| self.shown(self.held.len()));
        let met = first_stop(&self.stops, &self.held);
        let met_shown = shown.as_ref().and_then(|shown| {
            let (start, index) = first_stop(&self.stops, shown)?;
            Some((self.position(start), index))
        });
        if let Some((start, index)) = met.into_iter().chain(met_shown).min() {
            return (self.deliver(start), Some(index));
        }
        let open = open_stop(&self.stops, &self.held);
        let open_shown =
            shown.as_ref().and_then(|shown| Some(self.position(open_stop(&self.stops, shown)?)));
        let certain = open.into_iter().chain(open_shown).min().unwrap_or(self.held.len());
        (self.deliver(certain), None)
    }

    /// The first `end` bytes of `held` without their hidden parts.
    fn shown(&self, end: usize) -> String {
        let mut shown = String::new();
        let mut from = 0;
        for hidden in self.hidden.iter().take_while(|hidden| hidden.start < end) {
            shown.push_str(&self.held[from..hidden.start]);
            from = hidden.end;
        }
        shown.push_str(self.held.get(from..end).unwrap_or_default());
        shown
    }

    /// Where the byte that is number `shown` without hidden parts stands in `held`.
    fn position(&self, shown: usize) -> usize {
        self.hidden.iter().fold(shown, |position, hidden| {
            if hidden.start <= position { position + hidden.len() } else { position }
        })
    }

    /// Takes the first `end` bytes off `held` and gives what is shown of them.
    fn deliver(&mut self, end: usize) -> String {
        let shown = self.shown(end);
        self.held.drain(..end);
        self.hidden = std::mem::take(&mut self.hidden)
            .into_iter()
            .map(|hidden| hidden.start.saturating_sub(end)..hidden.end.saturating_sub(end))
            .filter(|hidden| !hidden.is_empty())
            .collect();
        shown
    }
}

/// The stop string that starts first in `text`, of those the first listed: where, and its index.
fn first_stop(stops: &[String], text: &str) -> Option<(usize, usize)> {
    let found = |(index, stop): (usize, &String)| Some((text.find(stop.as_str())?, index));
    stops.iter().enumerate().filter_map(found).min()
}

/// Where the first stop string starts that `text` ends in the middle of.
fn open_stop(stops: &[String], text: &str) -> Option<usize> {
    let open = |start: &usize| stops.iter().any(|stop| stop.starts_with(&text[*start..]));
    text.char_indices().map(|(start, _)| start).find(open)
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub reason: FinishReason,
    /// The stop string that was met.
    pub stop: Option<String>,
}

/// The text side of one answer.
#[derive(Debug, Clone)]
pub struct Answer {
    tokenizer: Tokenizer,
    decoder: TextDecoder,
    filter: StopFilter,
    eos: Option<Arc<[u32]>>,
    max_tokens: usize,
    generated: usize,
}

impl Answer {
    /// An empty answer to `prompt` of at most `max_tokens` tokens that ends at one of `stops` or,
    /// unless that is `None`, at one of `eos`.
    pub fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        stops: Vec<String>,
        eos: Option<Arc<[u32]>>,
        max_tokens: usize,
    ) -> Self {
        let decoder = TextDecoder::after(tokenizer, prompt, true);
        let tokenizer = tokenizer.clone();
        Self { tokenizer, decoder, filter: StopFilter::new(stops), eos, max_tokens, generated: 0 }
    }

    /// Tokens accepted.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Takes a token: the text that became certain, and whether the answer ended with it.
    pub fn accept(&mut self, id: u32) -> (String, Option<End>) {
        self.generated += 1;
        let ended = self.eos.as_ref().is_some_and(|eos| eos.contains(&id));
        let last = ended || self.generated >= self.max_tokens;
        let mut piece = if ended { String::new() } else { self.decoder.push(id) };
        if last {
            piece.push_str(&self.decoder.finish());
        }
        let (mut text, mut stop) = self.filter.push(&piece);
        if stop.is_none() && (ended || self.tokenizer.is_special(id)) {
            let (more, met) = self.filter.push_hidden(&self.tokenizer.control_text(id));
            text.push_str(&more);
            stop = met;
        }
        if let Some(index) = stop {
            let stop = self.filter.stops.get(index).cloned();
            return (text, Some(End { reason: FinishReason::Stop, stop }));
        }
        if !last {
            return (text, None);
        }
        text.push_str(&self.filter.finish());
        let reason = if ended { FinishReason::Stop } else { FinishReason::Length };
        (text, Some(End { reason, stop: None }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
        let mut filter = StopFilter::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            out.push(text);
            if stop.is_some() {
                return (out, stop);
            }
        }
        out.push(filter.finish());
        (out, None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_its_start_never_delivered() {
        let (texts, stop) = run(&["\n\n", "END"], &["one E", "N", "ough\n", "two E", "ND three"]);
        assert_eq!(texts, ["one ", "", "ENough", "\ntwo ", ""]);
        assert_eq!(stop, Some(1));
    }

    #[test]
    fn held_text_is_released_when_no_more_comes() {
        assert_eq!(run(&["END"], &["to the E"]), (vec!["to the ".into(), "E".into()], None));
    }

    #[test]
    fn the_stop_string_that_starts_first_wins() {
        assert_eq!(run(&["c", "bc"], &["abcd"]), (vec!["a".into()], Some(1)));
    }

    #[test]
    fn overlapping_starts_and_wide_characters_are_handled() {
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0.concat(), "a");
        assert_eq!(run(&["é→"], &["né", "→x"]), (vec!["n".into(), String::new()], Some(0)));
    }

    #[test]
    fn a_stop_string_is_met_with_and_without_the_hidden_text_between() {
        let run = |stops: &[&str], pieces: &[(&str, bool)]| {
            let mut filter = StopFilter::new(stops.iter().map(|&stop| stop.to_owned()).collect());
            let mut out = String::new();
            for &(piece, hidden) in pieces {
                let (text, stop) =
                    if hidden { filter.push_hidden(piece) } else { filter.push(piece) };
                out.push_str(&text);
                if stop.is_some() {
                    return (out, stop);
                }
            }
            (out + &filter.finish(), None)
        };
        let pieces = [("one a", false), ("<|x|>", true), ("b two", false)];
        assert_eq!(run(&[], &pieces), ("one ab two".into(), None));
        assert_eq!(run(&["<|x|>"], &pieces), ("one a".into(), Some(0)));
        assert_eq!(run(&["a<|x|>b"], &pieces), ("one ".into(), Some(0)));
        assert_eq!(run(&["ab"], &pieces), ("one ".into(), Some(0)));
        assert_eq!(run(&["|>b"], &pieces), ("one a".into(), Some(0)));
        assert_eq!(run(&["a<|x|>c", "b t"], &pieces), ("one a".into(), Some(1)));
        assert_eq!(run(&["a<|x|>c", "abc"], &pieces), ("one ab two".into(), None));
    }

    proptest! {
        #[test]
        fn any_split_gives_what_the_whole_text_gives(
            text in "[abé]{0,40}",
            stops in prop::collection::vec("[abé]{1,4}", 1..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut borders: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            borders.push(text.len());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&borders)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let first = stops.iter().filter_map(|stop| text.find(stop)).min();
            let (texts, stop) = run(&stops, &pieces);
            // In pieces, a short stop string may be met before a longer one that starts earlier
            // is complete; what is delivered never contains one and is a prefix of the text.
            let delivered = texts.concat();
            prop_assert!(text.starts_with(&delivered));
            prop_assert_eq!(stop.is_some(), first.is_some());
            match first {
                None => prop_assert_eq!(&delivered, &text),
                Some(first) => prop_assert!(delivered.len() >= first),
            }
            prop_assert!(stops.iter().all(|stop| !delivered.contains(stop)));
        }
    }
}

//! From tokens to the text of an answer: whole characters only, stop strings across token borders,
//! and when it ends.

use std::sync::Arc;

use super::request::FinishReason;
use crate::tokenizer::{TextDecoder, Tokenizer};

/// Finds stop strings in text that arrives in pieces. Text is held back only as long as it may be
/// the start of a stop string.
#[derive(Debug, Clone)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// A filter for `stops`, none of them empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes more text; returns the text that cannot be part of a stop string and, when a stop string
    /// was met (the first to start; of those the first listed), its index. The text ends before it.
    pub fn push(&mut self, text: &str) -> (String, Option<usize>) {
        self.held.push_str(text);
        let found = |(index, stop): (usize, &String)| Some((self.held.find(stop.as_str())?, index));
        if let Some((start, index)) = self.stops.iter().enumerate().filter_map(found).min() {
            let mut certain = std::mem::take(&mut self.held);
            certain.truncate(start);
            return (certain, Some(index));
        }
        let open = |start: &usize| {
            let tail = &self.held[*start..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let borders = self.held.char_indices().map(|(start, _)| start);
        let keep = borders.into_iter().find(open).unwrap_or(self.held.len());
        let held = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// The text held back; called at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: FinishReason,
    /// The stop string that was met.
    pub stop: Option<String>,
}

/// The text side of one answer.
#[derive(Debug, Clone)]
pub struct Answer {
    decoder: TextDecoder,
    filter: StopFilter,
    eos: Option<Arc<[u32]>>,
    max_tokens: usize,
    generated: usize,
}

impl Answer {
    /// An empty answer of at most `max_tokens` tokens that ends at one of `stops` or, unless that
    /// is `None`, at one of `eos`.
    pub fn new(
        tokenizer: &Tokenizer,
        stops: Vec<String>,
        eos: Option<Arc<[u32]>>,
        max_tokens: usize,
    ) -> Self {
        let decoder = TextDecoder::new(tokenizer, true);
        Self { decoder, filter: StopFilter::new(stops), eos, max_tokens, generated: 0 }
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
        let (mut text, stop) = self.filter.push(&piece);
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

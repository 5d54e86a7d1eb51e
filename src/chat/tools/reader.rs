//! Calls in an answer that arrives in pieces.

use std::sync::Arc;

use super::CallFormat;

/// Part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// The call with this index begins.
    Call {
        index: usize,
        name: String,
    },
    /// More of the arguments of the call with this index, as JSON text.
    Arguments {
        index: usize,
        text: String,
    },
}

/// Tells the calls of an answer from its text.
#[derive(Debug, Clone)]
pub struct CallReader {
    format: Arc<CallFormat>,
    place: Place,
    /// Text that is not yet known to be one or the other.
    held: String,
    /// Calls that have begun.
    calls: usize,
}

/// What the held text begins with.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    /// The answer.
    Start,
    /// Text in which a call may begin.
    Text,
    /// Text to the end.
    Rest,
    /// A call, or what a former call is followed by.
    Before,
    Name,
    Arguments(Depth),
    After,
}

/// How far the arguments, a JSON object, have come.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Depth {
    braces: usize,
    in_string: bool,
    escaped: bool,
}

impl Depth {
    /// Takes a character; whether the object ends with it.
    fn push(&mut self, c: char) -> bool {
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' => self.braces += 1,
            '}' => {
                self.braces = self.braces.saturating_sub(1);
                return self.braces == 0;
            }
            _ => {}
        }
        false
    }
}

impl CallReader {
    /// A reader at the beginning of an answer.
    pub fn new(format: Arc<CallFormat>) -> Self {
        Self { format, place: Place::Start, held: String::new(), calls: 0 }
    }

    /// Calls that have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes the next text of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The end of the answer: what was held back is text, or part of a call that was cut off.
    pub fn finish(&mut self) -> Vec<Piece> {
        let text = std::mem::take(&mut self.held);
        match self.place {
            Place::Start | Place::Text | Place::Rest if !text.is_empty() => vec![Piece::Text(text)],
            _ => Vec::new(),
        }
    }

    /// Reads on; false where more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let format = self.format.clone();
        let index = self.calls.saturating_sub(1);
        match self.place {
            Place::Start => {
                let Some(first) = self.held.chars().next() else { return false };
                self.place = match format.trigger() {
                    "" if format.before.starts_with(first) => Place::Before,
                    "" => Place::Rest,
                    _ => Place::Text,
                };
                true
            }
            Place::Text => {
                let found = self.held.find(format.trigger());
                let end = found.unwrap_or_else(|| open(&self.held, format.trigger()));
                let text: String = self.held.drain(..end).collect();
                // White space between text and call belongs to neither.
                let shown = text.trim_end();
                if found.is_none() {
                    self.held.insert_str(0, &text[shown.len()..]);
                }
                if !shown.is_empty() {
                    pieces.push(Piece::Text(shown.to_owned()));
                }
                if found.is_some() {
                    self.place = Place::Before;
                }
                found.is_some()
            }
            Place::Rest => {
                let text = std::mem::take(&mut self.held);
                if !text.is_empty() {
                    pieces.push(Piece::Text(text));
                }
                false
            }
            Place::Before => {
                let separated =
                    format.separator.as_deref().filter(|_| self.calls > 0).unwrap_or_default();
                self.expect(&[separated, &format.before].concat(), Place::Name)
            }
            Place::Name => {
                let Some((name, _)) = self.held.split_once(format.between.as_str()) else {
                    return false;
                };
                let name = name.to_owned();
                self.held.drain(..name.len() + format.between.len());
                pieces.push(Piece::Call { index: self.calls, name });
                self.calls += 1;
                self.place = Place::Arguments(Depth::default());
                true
            }
            Place::Arguments(mut depth) => {
                let end = self.held.char_indices().find(|(_, c)| depth.push(*c));
                let length = end.map_or(self.held.len(), |(at, c)| at + c.len_utf8());
                let text: String = self.held.drain(..length).collect();
                if !text.is_empty() {
                    pieces.push(Piece::Arguments { index, text });
                }
                self.place = if end.is_some() { Place::After } else { Place::Arguments(depth) };
                end.is_some()
            }
            Place::After => self.expect(&format.after, Place::Before),
        }
    }

    /// Reads `literal` and goes on at `next`; other text is no call.
    fn expect(&mut self, literal: &str, next: Place) -> bool {
        if self.held.starts_with(literal) {
            self.held.drain(..literal.len());
            self.place = next;
            return true;
        }
        if !literal.starts_with(self.held.as_str()) {
            self.place = Place::Rest;
            return true;
        }
        false
    }
}

/// Where the trigger may begin at the end of a text.
fn open(text: &str, trigger: &str) -> usize {
    let starts = text.char_indices().map(|(start, _)| start);
    let mut starts = starts.filter(|start| trigger.starts_with(&text[*start..]));
    starts.next().unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hermes() -> Arc<CallFormat> {
        Arc::new(CallFormat {
            before: "<tool_call>\n{\"name\": \"".to_owned(),
            between: "\", \"arguments\": ".to_owned(),
            after: "}\n</tool_call>".to_owned(),
            separator: Some("\n".to_owned()),
        })
    }

    fn llama() -> Arc<CallFormat> {
        Arc::new(CallFormat {
            before: "{\"name\": \"".to_owned(),
            between: "\", \"parameters\": ".to_owned(),
            after: "}".to_owned(),
            separator: None,
        })
    }

    /// Text, and name and arguments of each call.
    fn read(format: &Arc<CallFormat>, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new(format.clone());
        let (mut text, mut calls) = (String::new(), Vec::new());
        let mut read: Vec<Piece> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
        read.extend(reader.finish());
        for piece in read {
            match piece {
                Piece::Text(more) => text.push_str(&more),
                Piece::Call { index, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((name, String::new()));
                }
                Piece::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        (text, calls)
    }

    const TWO: &str = "Let me look.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}\\\"{\"}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"b\", \"arguments\": {\"y\": {\"z\": []}}}\n</tool_call>";

    fn two() -> (String, Vec<(String, String)>) {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        let calls = vec![call("a", "{\"x\": \"}\\\"{\"}"), call("b", "{\"y\": {\"z\": []}}")];
        ("Let me look.".to_owned(), calls)
    }

    #[test]
    fn calls_are_told_from_text() {
        assert_eq!(read(&hermes(), &[TWO]), two());
        let text = |text: &str| (text.to_owned(), Vec::new());
        for plain in ["", "Hello", "a < b and a <tool", "trailing  \n", "{\"name\": \"x\"}"] {
            assert_eq!(read(&hermes(), &[plain]), text(plain), "{plain}");
        }
        assert_eq!(read(&hermes(), &["x<tool_call> no"]), text("x<tool_call> no"));
        let one = ("get".to_owned(), "{\"a\": 1}".to_owned());
        let answer = "{\"name\": \"get\", \"parameters\": {\"a\": 1}}";
        assert_eq!(read(&llama(), &[answer]), (String::new(), vec![one]));
        assert_eq!(read(&llama(), &["No {braces}"]), text("No {braces}"));
        let cut = &answer[..answer.len() - 3];
        let part = ("get".to_owned(), "{\"a\": ".to_owned());
        assert_eq!(read(&llama(), &[cut]), (String::new(), vec![part]), "cut off");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(cuts in prop::collection::vec(0..TWO.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, TWO.len()]);
            cuts.sort();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &TWO[w[0]..w[1]]).collect();
            prop_assert_eq!(read(&hermes(), &pieces), two());
        }
    }
}

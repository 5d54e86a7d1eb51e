//! Fields that other servers have and this one does not, and what becomes of each: the one table.
//!
//! A client that always sends its server's defaults must not fail here, so the values under which
//! such a field changes nothing are accepted. Any other value asks for something that would not
//! happen, and is refused by name. `docs/api.md` shows the same table; a test holds it.

mod field;
mod table;

pub use field::Place;

use self::{field::Foreign, table::TABLE};

/// The row of a field.
pub fn find(place: Place, name: &str) -> Option<&'static Foreign> {
    TABLE.iter().find(|row| row.place == place && row.names.contains(&name))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{
        field::{
            Neutral::{Any, Only},
            Place::{
                Body, Format, Message, Output, Part, Reasoning, StreamOptions, StructuredOutputs,
                Tool,
            },
        },
        *,
    };

    /// The table as `docs/api.md` shows it.
    fn page() -> String {
        let mut page =
            String::from("| field | accepted | why, or what to use instead |\n|---|---|---|\n");
        for row in TABLE {
            let place = match row.place {
                Body => "",
                Message => "messages[].",
                Part => "content[].",
                StreamOptions => "stream_options.",
                Format => "response_format.",
                StructuredOutputs => "structured_outputs.",
                Output => "text.",
                Reasoning => "reasoning.",
                Tool => "tools[].",
            };
            let names: Vec<String> =
                row.names.iter().map(|name| format!("`{place}{name}`")).collect();
            let accepted = match row.neutral {
                Any => "any value".to_owned(),
                Only([]) => "—".to_owned(),
                Only(texts) => {
                    texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ")
                }
            };
            page += &format!("| {} | {accepted} | {} |\n", names.join(", "), row.reason);
        }
        page
    }

    #[test]
    fn the_page_shows_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
        let text = std::fs::read_to_string(path).unwrap();
        let expected = page();
        assert!(text.contains(&expected), "docs/api.md lacks this table:\n\n{expected}");
    }

    #[test]
    fn each_field_has_one_row_and_each_neutral_value_is_json() {
        let mut seen = std::collections::HashSet::new();
        for row in TABLE {
            for name in row.names {
                assert!(seen.insert((row.place as u8, *name)), "{name} has two rows");
            }
            if let Only(texts) = row.neutral {
                for text in texts {
                    let value: Value = serde_json::from_str(text).unwrap();
                    assert!(row.accepts(&value), "{text}");
                }
            }
        }
    }
}

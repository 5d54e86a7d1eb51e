//! A chat template: compiled or refused, and rendered within its bounds.
#![no_main]

use std::collections::BTreeMap;

use ladle::chat::{ChatTemplate, Conversation, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &str| {
    let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let Ok(template) = ChatTemplate::new(source, special) else { return };
    let messages = vec![Message::new("system", "Be brief."), Message::new("user", "Hello {{ x }}")];
    let _ = template.render(&Conversation { messages, ..Conversation::default() });
});

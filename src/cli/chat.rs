//! `ladle chat`: a conversation with a running server.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::{Value, json};

use super::client::{Sampling, Server, show};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    sampling: Sampling,
    /// System prompt.
    #[arg(long)]
    system: Option<String>,
}

const COMMANDS: &str = "\
/preference P   answer with another preference from now on
/undo           forget the last question and its answer
/clear          begin anew
/help           this list
/exit           end, as does the end of input
";

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { server, mut sampling, system } = args;
    let terminal = io::stdin().is_terminal();
    let first = system.map(|text| json!({"role": "system", "content": text}));
    let mut turns: Vec<Value> = first.iter().cloned().collect();
    tell(terminal, "/help lists what can be said beside questions.\n");
    let mut lines = io::stdin().lock().lines();
    loop {
        tell(terminal, "> ");
        let Some(line) = lines.next().transpose()? else { break };
        let line = line.trim();
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "" => {}
            "/exit" => break,
            "/help" => tell(true, COMMANDS),
            "/clear" => turns = first.iter().cloned().collect(),
            "/undo" => turns.truncate(turns.len().saturating_sub(2).max(first.iter().len())),
            "/preference" => {
                let preference = rest.trim();
                sampling.preference = (!preference.is_empty()).then(|| preference.to_owned());
            }
            _ => {
                turns.push(json!({"role": "user", "content": line}));
                match answer(&server, &sampling, &turns) {
                    Ok(text) => turns.push(json!({"role": "assistant", "content": text})),
                    Err(error) if terminal => {
                        // The question can be asked again, differently.
                        turns.pop();
                        tell(true, &format!("{error:#}\n"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

/// Asks for the next turn and shows it as it comes.
fn answer(server: &Server, sampling: &Sampling, turns: &[Value]) -> anyhow::Result<String> {
    let mut body = sampling.body()?;
    body.insert("messages".to_owned(), turns.into());
    body.insert("stream".to_owned(), true.into());
    let mut answer = String::new();
    let preference = sampling.preference.as_deref();
    server.stream("/v1/chat/completions", preference, body, |_, data| {
        let text = data["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        answer.push_str(text);
        show(text)?;
        Ok(())
    })?;
    show("\n")?;
    Ok(answer)
}

/// Tells the person at the terminal something that is not part of the conversation.
fn tell(wanted: bool, text: &str) {
    if wanted {
        // Without standard error there is nobody to tell.
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

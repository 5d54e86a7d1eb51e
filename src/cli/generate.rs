//! `ladle generate`: one answer of a running server.

use std::io::{self, Read};

use anyhow::bail;

use super::{
    client::{Sampling, Server, show},
    output::print,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Text to continue; left out or -: standard input.
    prompt: Option<String>,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    sampling: Sampling,
    /// Print the whole answer of the server as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { prompt, server, sampling, json } = args;
    let prompt = match prompt.filter(|prompt| prompt != "-") {
        Some(prompt) => prompt,
        None => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    if prompt.is_empty() {
        bail!("the prompt is empty, expected at least one character");
    }
    let mut body = sampling.body()?;
    body.insert("prompt".to_owned(), prompt.into());
    let preference = sampling.preference.as_deref();
    if json {
        let mut text = String::new();
        server.post("/generate", preference, body)?.read_to_string(&mut text)?;
        return print(&text);
    }
    body.insert("stream".to_owned(), true.into());
    server.stream("/generate", preference, body, |event, data| {
        if event == "token" {
            show(data["text"].as_str().unwrap_or_default())?;
        }
        Ok(())
    })?;
    print("")
}

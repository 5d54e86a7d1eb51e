//! `ladle key`: named keys of the server.

use std::path::PathBuf;

use ladle::http::keys::{self, Key};

use super::output::print;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Draw a key, add its digest to a file of named keys, and print it: it is kept nowhere.
    New {
        /// What its holder is called in counts and logs.
        name: String,
        /// The file, which `ladle serve --named-keys` reads; made where absent.
        #[arg(long)]
        file: PathBuf,
        /// Let its holder read the metrics.
        #[arg(long)]
        admin: bool,
        /// Let its holder see and replace the served soup.
        #[arg(long)]
        soups: bool,
        /// A preset that its holder may ask for, and then no other preference; repeat.
        #[arg(long = "preset", value_name = "PRESET")]
        presets: Vec<String>,
        /// Its holder's requests that may be in progress.
        #[arg(long, value_name = "N")]
        max_in_flight: Option<usize>,
        /// Tokens of prompts and answers that its holder may have in a minute.
        #[arg(long, value_name = "N")]
        tokens_per_minute: Option<usize>,
        /// The least and the highest priority that its holder's requests may have.
        #[arg(long, value_name = "LEAST,MOST", value_parser = range, allow_hyphen_values = true)]
        priority: Option<(i32, i32)>,
    },
}

/// Two whole numbers, as in `-10,0`.
fn range(text: &str) -> Result<(i32, i32), String> {
    let ends = text
        .split_once(',')
        .and_then(|(least, most)| Some((least.trim().parse().ok()?, most.trim().parse().ok()?)));
    ends.ok_or_else(|| "expected LEAST,MOST, such as -10,0".to_owned())
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::New {
        name,
        file,
        admin,
        soups,
        presets,
        max_in_flight,
        tokens_per_minute,
        priority,
    } = args.command;
    let presets = (!presets.is_empty()).then_some(presets);
    let sha256 = String::new();
    let rights =
        Key { name, sha256, admin, soups, presets, max_in_flight, tokens_per_minute, priority };
    print(&keys::add(&file, rights)?)
}

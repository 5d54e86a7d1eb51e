//! `ladle key`: named keys of the server.

use std::path::PathBuf;

use ladle::http::keys;

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
        /// A preset that its holder may ask for, and then no other preference; repeat.
        #[arg(long = "preset", value_name = "PRESET")]
        presets: Vec<String>,
    },
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::New { name, file, admin, presets } = args.command;
    let presets = (!presets.is_empty()).then_some(presets);
    print(&keys::add(&file, &name, admin, presets)?)
}

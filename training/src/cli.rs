//! The command line of `train-backbones`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use ladle::{
    config::{
        LogOptions, StoreOptions,
        program::{Pages, complete},
    },
    soup::manifest::is_name,
};
use ladle_training::{
    config::Override,
    engines,
    measure::{mauve::Quantisation, methods::Kind, server::ServerOptions},
    rewards::fit::{self, lesson::Source as Lesson},
};

/// Multi-objective reinforcement learning that makes the backbones of a soup.
#[derive(Parser)]
#[command(name = "train-backbones", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub logs: LogOptions,
}

#[derive(Subcommand)]
pub enum Command {
    /// Supervised tuning and the scale of the rewards: what `--share` takes.
    Sft(Source),
    /// Teaches a reward model from a data set: a head on a frozen encoder or causal language model,
    /// for the rewards `sequence-classifier` (preferences) and `span-classifier` (marked errors).
    Reward {
        /// What the rows of the file teach.
        #[arg(value_enum)]
        lesson: Lesson,
        /// The data set's JSONL file.
        rows: PathBuf,
        /// Directory of the encoder or language model, such as all-MiniLM-L6-v2.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Directory of the reward model.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Rows that are read at most.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        #[command(flatten)]
        settings: fit::Settings,
    },
    /// Every stage to the soup: supervised tuning, all backbones, soup.toml.
    Run {
        #[command(flatten)]
        source: Source,
        /// Train this backbone only (one process of an array).
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Goes on with a run where it was stopped.
    Resume {
        /// The run's directory.
        run: PathBuf,
        #[command(flatten)]
        at: At,
        /// Go on with this backbone only.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// Trains the first fifth of the run, at least 20 updates, for each β and prints the hypervolumes
    /// on validation prompts.
    SelectBeta {
        #[command(flatten)]
        source: Source,
        /// Values of β.
        #[arg(long, value_delimiter = ',', default_value = "0.6,0.7,0.8")]
        betas: Vec<f64>,
        /// Validation prompts that are answered for each preference.
        #[arg(long, default_value_t = 64)]
        prompts: usize,
    },
    /// Evaluates a finished run's soup over extrapolations on validation prompts: one α for all, and
    /// one for each objective at its corner.
    SelectAlpha {
        /// The run's directory.
        run: PathBuf,
        #[command(flatten)]
        at: At,
        /// Values of α (a/(1−a) for a in 0..0.5: the authors' grid, with 0).
        #[arg(
            long,
            allow_hyphen_values = true,
            value_delimiter = ',',
            default_value = "0,0.111,0.25,0.429,0.667,1"
        )]
        alphas: Vec<f64>,
        /// Validation prompts that are answered for each preference.
        #[arg(long, default_value_t = 64)]
        prompts: usize,
    },
    /// Sweeps the grid of preferences over the test prompts through the served engine, here or behind
    /// HTTP, and writes front.json, samples.csv and report.html.
    Evaluate {
        /// The finished run's directory; with --soup also a configuration, whose data, rewards and
        /// rollout count.
        run: PathBuf,
        /// The soup that is measured, with its objectives and B, instead of the run's.
        #[arg(long, value_name = "DIR")]
        soup: Option<PathBuf>,
        /// With --soup: where the frozen scale of the rewards is from, a run of the same configuration or
        /// its standardiser.toml. Left out, from the run.
        #[arg(long, value_name = "RUN|FILE", requires = "soup")]
        share: Option<PathBuf>,
        #[command(flatten)]
        server: ServerOptions,
        /// Directory that the evaluation writes.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        sweep: Sweep,
        #[command(flatten)]
        at: At,
    },
    /// Compares two sets of texts by MAUVE, on the features that a decoder gives them, and prints
    /// the scores as JSON.
    Mauve {
        /// Texts of people: JSONL with `text`.
        human: PathBuf,
        /// Texts of a model: JSONL with `text`.
        answers: PathBuf,
        /// Directory of the causal language model whose last token's state is a text's feature.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        #[command(flatten)]
        how: Quantisation,
    },
    /// Puts evaluations of several training seeds together: means and spread over the seeds, and
    /// differences with intervals over seeds and prompts.
    Aggregate {
        /// Directories of the evaluations, one for each training seed.
        #[arg(required = true)]
        evaluations: Vec<PathBuf>,
        /// Directory that aggregate.json is written to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Method that the others are compared with; with `, chosen α` behind it, each seed's choice.
        #[arg(long, default_value = "rewarded soup")]
        baseline: String,
    },
    /// Serves the rewards of one backbone over HTTP, for trainers that run elsewhere: `POST /rewards`,
    /// and `POST /get_reward` for OpenRLHF.
    ServeRewards(Rewards),
    /// Writes what another engine needs to train the backbones of a configuration: for each a directory
    /// with the script `run`.
    Export {
        #[command(flatten)]
        settings: engines::Settings,
        /// Overrides a key of the configuration, as in rl.steps=40; repeat.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Override>,
        /// Directory that the configuration's data paths are relative to.
        #[arg(long, env = "LADLE_DATA", value_name = "DIR", default_value = ".")]
        data: PathBuf,
    },
    #[command(flatten)]
    Pages(Pages),
}

/// The rewards of one backbone as a service.
#[derive(Args)]
pub struct Rewards {
    /// The run's configuration; of its data and base nothing is opened but, for OpenRLHF, the base's
    /// tokenizer.
    pub config: PathBuf,
    /// Overrides a key of the configuration, as in balance.every=5; repeat.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Override>,
    /// Backbone whose column of B weighs the rewards.
    #[arg(long, value_name = "NAME")]
    pub backbone: String,
    /// Where the frozen scale of the rewards is from: a run of the same configuration, such as one that
    /// `train-backbones sft` made, or its standardiser.toml.
    #[arg(long, value_name = "RUN|FILE")]
    pub share: PathBuf,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// File of the weights' state, made where absent; needed where the weights move.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Text that ends a response in OpenRLHF's queries; repeat. Left out, the end-of-sequence tokens of
    /// the base's tokenizer.
    #[arg(long, value_name = "TEXT")]
    pub end: Vec<String>,
    /// Rows of one request at most.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_rows: usize,
    /// Bytes of one request at most.
    #[arg(long, value_name = "N", default_value_t = 16 << 20)]
    pub max_bytes: usize,
    #[command(flatten)]
    pub at: At,
}

/// The program's command line; the options of logging are accepted before and after any command.
pub fn program() -> clap::Command {
    complete(Cli::command().mut_args(|arg| arg.global(true)))
}

pub fn parse() -> Cli {
    let matches = program().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// What an evaluation compares, and how.
#[derive(Args)]
pub struct Sweep {
    /// Finished runs to compare with, such as one with `mixing = { identity = true }`; LABEL tells
    /// methods of one name apart; repeat.
    #[arg(long, value_name = "[LABEL=]RUN", value_parser = labelled, conflicts_with = "engine")]
    pub against: Vec<(String, PathBuf)>,
    /// Finished runs whose backbones count only as policies trained for their columns of B; repeat.
    #[arg(long, value_name = "[LABEL=]RUN", value_parser = labelled, conflicts_with = "engine")]
    pub oracle: Vec<(String, PathBuf)>,
    /// Methods compared, beside θ_sft.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "bone,realised,aba,clamped,rewarded,mod,oracle,policy,ric"
    )]
    pub methods: Vec<Kind>,
    /// Values of α, for every rule that merges backbones: chosen on validation prompts, reported on test
    /// prompts beside 0.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, default_value = "0")]
    pub alphas: Vec<f64>,
    /// Test prompts of each point.
    #[arg(long, default_value_t = 64)]
    pub prompts: usize,
    /// Answers the test prompts at all of --alphas, as a server's predictions between them need, instead
    /// of at 0 and the best on validation prompts.
    #[arg(long, conflicts_with = "dev_prompts")]
    pub every_alpha: bool,
    /// Validation prompts of each point that α is chosen on.
    #[arg(long, default_value_t = 64)]
    pub dev_prompts: usize,
    /// The grid's spacing is 1 over this.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub grid: u16,
    /// Preferences instead of the grid, as in "1,0;0.5,0.5;0,1".
    #[arg(long, value_name = "LIST", value_delimiter = ';', value_parser = preference)]
    pub preferences: Vec<Weights>,
    /// Sampling temperature; 0 is greedy. Left out, that of the run's rollouts, under which
    /// `select-alpha` and `select-beta` choose too.
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Seeds of the sampling.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub seeds: Vec<u64>,
}

/// A preference on the command line; a type of its own, because clap reads a `Vec` as a repeated
/// value.
#[derive(Debug, Clone)]
pub struct Weights(pub Vec<f64>);

fn preference(text: &str) -> Result<Weights, String> {
    let weight =
        |weight: &str| weight.trim().parse().map_err(|_| format!("{weight:?} is no number"));
    text.split(',').map(weight).collect::<Result<_, String>>().map(Weights)
}

/// `LABEL=RUN`, or a run that is its own label.
fn labelled(text: &str) -> Result<(String, PathBuf), String> {
    Ok(match text.split_once('=') {
        Some((label, run)) if is_name(label) => (label.to_owned(), run.into()),
        _ => (text.to_owned(), text.into()),
    })
}

/// A new run.
#[derive(Args)]
pub struct Source {
    /// The run's configuration.
    pub config: PathBuf,
    /// Directory that the run writes.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub at: At,
    /// Overrides a key of the configuration: a dotted path and a TOML value, as in rl.steps=40;
    /// repeat.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Override>,
    /// Takes θ_sft and the scale of the rewards from another run of the same base, data, rewards and
    /// seed, so that the two can be compared.
    #[arg(long, value_name = "RUN")]
    pub share: Option<PathBuf>,
    /// Print the plan with the estimated tokens, time and memory, and stop.
    #[arg(long)]
    pub dry_run: bool,
}

/// Where things are on this machine.
#[derive(Args, Clone)]
pub struct At {
    /// Directory that the configuration's data paths are relative to.
    #[arg(long, env = "LADLE_DATA", value_name = "DIR", default_value = ".")]
    pub data: PathBuf,
    #[command(flatten)]
    pub store: StoreOptions,
}

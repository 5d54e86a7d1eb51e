//! Environment variables that are not options.

/// A variable that both programs read.
pub struct Variable {
    pub name: &'static str,
    pub meaning: &'static str,
    /// Value where it is not set.
    pub default: &'static str,
}

const fn variable(name: &'static str, meaning: &'static str, default: &'static str) -> Variable {
    Variable { name, meaning, default }
}

/// All variables.
pub const VARIABLES: [Variable; 9] = [
    variable(
        "LADLE_HOME",
        "Directory of imported base models, fetched soups and compiled GPU kernels",
        "ladle in $XDG_CACHE_HOME, else in ~/.cache",
    ),
    variable(
        "LADLE_ISA",
        "Instruction set of the CPU's kernels, such as avx2 or portable",
        "the best that the machine has",
    ),
    variable(
        "LADLE_CUDA_LIBS",
        "Directories, separated by colons, that are searched first for CUDA's libraries",
        "where the system looks",
    ),
    variable("RAYON_NUM_THREADS", "Threads of `ladle merge` and of train-backbones", "all cores"),
    variable("HF_ENDPOINT", "The hub that models are fetched from", "https://huggingface.co"),
    variable("HF_TOKEN", "Token for the hub", "the content of the file HF_TOKEN_PATH"),
    variable("HF_TOKEN_PATH", "File of the token", "token in HF_HOME"),
    variable("HF_HOME", "Directory of the hub's own tools", "huggingface in $XDG_CACHE_HOME"),
    variable("HF_HUB_DISABLE_IMPLICIT_TOKEN", "If not empty, no token is sent", "not set"),
];

/// Everything in the environment that is text.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The variables as lines of help.
pub fn help() -> String {
    let width = VARIABLES.iter().map(|variable| variable.name.len()).max().unwrap_or(0);
    let lines = VARIABLES.iter().map(|Variable { name, meaning, default }| {
        format!("  {name:width$}  {meaning} [default: {default}]")
    });
    format!("Environment:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// The variables as a table of Markdown.
pub fn table() -> String {
    let rows = VARIABLES.iter().map(|Variable { name, meaning, default }| {
        format!("| `{name}` | {meaning} | {default} |\n")
    });
    let title = "| environment | meaning | default |\n| --- | --- | --- |\n";
    title.to_owned() + &rows.collect::<String>()
}

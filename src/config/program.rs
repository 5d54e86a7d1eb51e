//! Command lines of both programs: parsing, error text, man pages, completions, and the tables of
//! options in `docs/`.

use std::{
    error::Error,
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Arg, Command, Subcommand};

use super::environment;

/// Prints why a program failed, and gives its exit code.
pub fn exit<E: AsRef<dyn Error + Send + Sync>>(outcome: Result<(), E>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // An error of stderr itself cannot be reported.
    let _ = writeln!(io::stderr(), "error: {}", explain(error.as_ref()));
    ExitCode::FAILURE
}

/// An error and its causes on one line, each text once.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Completes a program's command: its help lists the environment, and values such as `-0.5` are
/// accepted as values of arguments.
pub fn complete(command: Command) -> Command {
    with_negative_numbers(command).after_help(environment::help())
}

fn with_negative_numbers(command: Command) -> Command {
    let takes = |arg: Arg| match arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(takes).mut_subcommands(with_negative_numbers)
}

/// What is generated from the options.
#[derive(Debug, Subcommand)]
pub enum Pages {
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command.
    #[command(hide = true)]
    Man {
        /// Directory to write to.
        dir: PathBuf,
    },
    /// Write the tables of options into a page of the documentation, between its markers.
    #[command(hide = true)]
    Options {
        /// The Markdown file.
        page: PathBuf,
        /// Fail if the page is not as it would be written.
        #[arg(long)]
        check: bool,
    },
}

/// Why a page was not written.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {message}", path.display())]
    Marker { path: PathBuf, message: String },
    #[error("{page} is stale: run `{program} options {page}`", page = page.display())]
    Stale { page: PathBuf, program: String },
}

impl Pages {
    /// Generates the output from the program's command.
    pub fn run(self, mut program: Command) -> Result<(), PageError> {
        let name = program.get_name().to_owned();
        match self {
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut program, name, &mut io::stdout());
                Ok(())
            }
            Self::Man { dir } => fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(program, &dir))
                .map_err(|source| PageError::File { path: dir, source }),
            Self::Options { page, check } => {
                let file = |source| PageError::File { path: page.clone(), source };
                let marker = |message| PageError::Marker { path: page.clone(), message };
                let text = fs::read_to_string(&page).map_err(file)?;
                let fresh = refreshed(&text, &mut program).map_err(marker)?;
                match (check, fresh == text) {
                    (_, true) => Ok(()),
                    (true, false) => Err(PageError::Stale { page, program: name }),
                    (false, false) => fs::write(&page, fresh).map_err(file),
                }
            }
        }
    }
}

const BEGIN: &str = "<!-- options: ";
const END: &str = "<!-- end of options -->";

/// Name of the table of environment variables in a marker.
const ENVIRONMENT: &str = "environment";

/// The page with the text between `<!-- options: COMMAND… -->` and `<!-- end of options -->`
/// replaced by the options of these commands.
fn refreshed(page: &str, program: &mut Command) -> Result<String, String> {
    program.build();
    let title = program.get_name().to_owned();
    let mut parts = page.split(BEGIN);
    let mut fresh = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (commands, rest) = part.split_once(" -->").ok_or("a marker has no end")?;
        let (_, rest) = rest.split_once(END).ok_or_else(|| format!("no `{END}` after a marker"))?;
        fresh += &format!("{BEGIN}{commands} -->\n");
        let names: Vec<&str> = commands.split_whitespace().collect();
        for name in &names {
            if *name == ENVIRONMENT {
                fresh += &format!("\n{}", environment::table());
                continue;
            }
            let command = program
                .find_subcommand_mut(name)
                .ok_or_else(|| format!("the options of `{name}` are asked for, no such command"))?;
            fresh += "\n";
            if names.len() > 1 {
                fresh += &format!("### `{title} {name}`\n\n");
            }
            fresh += &table(command);
        }
        fresh += &format!("\n{END}{rest}");
    }
    Ok(fresh)
}

/// A command's purpose and usage, and a row for each argument.
fn table(command: &mut Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.render_usage().to_string().replace("Usage: ", "");
    let rows: Vec<_> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
        .map(row)
        .collect();
    // Only `serve` reads its options from a file too, where a key is the option's id.
    let keys = command.get_arguments().any(|arg| arg.get_long() == Some("config"));
    let environment = rows.iter().any(|row| !row[1].is_empty());
    let shown = [true, environment, keys, true, true];
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(shown).filter(|(_, shown)| *shown);
        cells.map(|(cell, _)| format!("| {cell} ")).collect::<String>() + "|\n"
    };
    let mut text = format!("{about}.\n\n```sh\n{}\n```\n\n", usage.trim());
    text += &line(&["option", "environment", "key", "meaning", "default"].map(str::to_owned));
    text += &line(&["---"; 5].map(str::to_owned));
    rows.iter().for_each(|row| text += &line(row));
    text
}

/// Option, environment variable, key of the file, meaning, default.
fn row(arg: &Arg) -> [String; 5] {
    let code = |text: &str| format!("`{}`", text.replace('|', "\\|"));
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let (mut meaning, mut default) = match help.split_once(" [default: ") {
        Some((meaning, default)) => (meaning.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (help.replace('|', "\\|"), String::new()),
    };
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|value| code(value.get_name()))
        .filter(|value| !matches!(value.as_str(), "`true`" | "`false`"))
        .collect();
    if !values.is_empty() {
        meaning += &format!(": {}", values.join(", "));
    }
    let given: Vec<_> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() && !given.is_empty() {
        default = given.join(",");
    }
    let environment = arg.get_env().map(|name| code(&name.to_string_lossy()));
    let key = if arg.get_env().is_some() { code(arg.get_id().as_str()) } else { String::new() };
    [code(&arg.to_string()), environment.unwrap_or_default(), key, meaning, default]
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command};

    use super::*;
    use crate::config::ServeOptions;

    fn program() -> Command {
        let serve = ServeOptions::augment_args(Command::new("serve")).about("Serve a soup");
        Command::new("program").subcommand(serve)
    }

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("settings.toml: {0}")]
        Repeated(#[source] io::Error),
        #[error("settings.toml")]
        Silent(#[source] io::Error),
    }

    #[test]
    fn a_cause_is_told_once_whether_or_not_the_error_repeats_it() {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no such file");
        for error in [Failure::Repeated(missing()), Failure::Silent(missing())] {
            assert_eq!(explain(&error), "settings.toml: no such file");
        }
    }

    #[test]
    fn a_page_gets_its_tables_and_keeps_the_rest() {
        let page =
            "# Title\n<!-- options: serve -->\nthis was here\n<!-- end of options -->\nrest\n";
        let fresh = refreshed(page, &mut program()).unwrap();
        assert!(
            fresh.starts_with("# Title\n<!-- options: serve -->\n\nServe a soup.\n"),
            "{fresh}"
        );
        assert!(
            fresh.ends_with("\n<!-- end of options -->\nrest\n") && !fresh.contains("this was")
        );
        let port =
            "| `--port <PORT>` | `LADLE_PORT` | Port to listen on; 0 takes a free one | 8080 |";
        assert!(fresh.contains(port), "{fresh}");
        assert!(fresh.contains("How preferences are executed: `auto`, `fused`, `mixed` | auto |"));
        assert_eq!(refreshed(&fresh, &mut program()).unwrap(), fresh);
        let unknown = "<!-- options: sreve -->\n<!-- end of options -->";
        assert!(refreshed(unknown, &mut program()).unwrap_err().contains("`sreve`"));
        assert!(refreshed("<!-- options: serve -->", &mut program()).is_err());
    }
}

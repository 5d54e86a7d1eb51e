//! What an evaluation was asked for and cannot give: methods, extrapolations of a server, runs.

use super::{
    error::EvaluateError,
    methods::{Kind, LeftOut, Method},
    serve::Served,
    server::Server,
    settings::Settings,
};
use crate::{run::Run, setup::Prompt};

type Result<T> = std::result::Result<T, EvaluateError>;

/// The methods for which a server cannot be asked, each with the reason.
pub fn unasked(
    server: &Server,
    methods: &[Method],
    settings: &Settings,
    preferences: &[&Vec<f64>],
) -> Result<Vec<(String, String)>> {
    let mut alphas = settings.alphas.iter().filter(|alpha| **alpha != 0.0);
    if let Some((alpha, reason)) = alphas.find_map(|a| Some((a, server.check_alpha(*a).err()?))) {
        return Err(EvaluateError::Settings(format!("--alphas has {alpha}: {reason}")));
    }
    let mut unasked = Vec::new();
    for method in methods {
        let alphas = if method.kind.extrapolates() { &settings.alphas[..] } else { &[0.0] };
        for preference in preferences {
            for alpha in alphas {
                let (_, model) = method.extrapolated(*alpha).solve(preference)?;
                if let Err(reason) = server.ask_for(&model) {
                    unasked.push((method.name.clone(), reason));
                }
            }
        }
    }
    unasked.dedup_by(|a, b| a.0 == b.0);
    Ok(unasked)
}

/// The methods that were asked for by name and that no run serves, in words.
pub fn unserved(
    kinds: &[Kind],
    methods: &[Method],
    oracles: bool,
    left_out: &[LeftOut],
) -> Option<String> {
    if kinds.len() == Kind::ALL.len() {
        return None;
    }
    let served = |kind: &Kind| match kind {
        Kind::Oracle => oracles,
        // One that cannot be solved is left out with its reason.
        Kind::Realised => !left_out.is_empty() || methods.iter().any(|m| m.kind == *kind),
        kind => methods.iter().any(|method| method.kind == *kind),
    };
    let kind = kinds.iter().find(|kind| !served(kind))?;
    let name = clap::ValueEnum::to_possible_value(kind)?.get_name().to_owned();
    let needs = kind.needs();
    Some(format!("--methods has {name}, which no run here serves: expected {needs}, or without it"))
}

/// Refuses runs of other objectives or of a base that reads the prompts as other tokens; says which
/// were not tuned from the subject's θ_sft.
pub fn comparable(served: &[Served<'_>], prompts: &[&Prompt]) -> Result<()> {
    let names = |run: &Run| run.config.objectives.iter().map(|o| o.name.clone()).collect();
    let sft = |soup: &Served<'_>| {
        let file = soup.soup.sft.as_ref().map(|sft| sft.file().bytes());
        file.map(ladle::files::sha256)
    };
    for other in served {
        let (expected, got): (Vec<String>, Vec<String>) = (names(served[0].run), names(other.run));
        if expected != got {
            let path = other.path.display();
            let reason = format!("{path} has the objectives {got:?}, expected {expected:?}");
            return Err(EvaluateError::Settings(reason));
        }
        let tokens = |prompt: &&Prompt| other.run.base.prompt(&prompt.example);
        if prompts.iter().any(|prompt| tokens(prompt).as_ref() != Ok(&prompt.tokens)) {
            let reason = "its base reads the prompts as other tokens; compare runs of one base";
            return Err(EvaluateError::Soup { path: other.path.clone(), reason: reason.into() });
        }
        if sft(other) != sft(&served[0]) {
            tracing::warn!(
                "{}: tuned from another θ_sft than the subject; `run --share` makes runs start alike",
                other.path.display()
            );
        }
    }
    Ok(())
}

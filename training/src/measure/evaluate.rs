//! `evaluate`: sweeps a grid of preferences through the merge and engine that users are served by, in
//! this process or behind HTTP, scores the answers, and measures the fronts.
//!
//! ```text
//! OUT/evaluation.toml  how the answers are made
//! OUT/answers.jsonl    every answer with its rewards, appended point by point
//! OUT/reference.jsonl  log-probabilities of the answers under θ_sft
//! OUT/samples.csv      the answers by method and preference
//! OUT/front.json       rewards and metrics of every method
//! OUT/report.html      for people
//! ```
//!
//! α is chosen on validation prompts; test prompts are answered at α = 0 and at the choice. A stopped
//! evaluation goes on after its last whole answer. Methods that ask for the same model share its
//! answers.

use std::{fs, path::Path};

use super::{
    answers::{Answer, Book, Table},
    compare::{BackboneKls, Swept, compare},
    error::EvaluateError,
    front::controllability_ceiling,
    points::{Point, point},
    reference::{Frozen, Reference, Tape},
    report::Shown,
    results::{FORMAT, FrontFile, MethodFront, Objective},
    settings::{Fixed, Settings},
    sweep::{Answered, Column, Other, Planned, Subject, Sweep},
};
use crate::{
    checkpoint::{to_toml, write_atomically},
    error::RunError,
    setup::Prompt,
};

type Result<T> = std::result::Result<T, EvaluateError>;

/// Result of an evaluation.
pub struct Evaluation {
    /// Points and metrics of all methods.
    pub front: FrontFile,
    /// Example answers for the report.
    pub shown: Vec<Shown>,
}

/// Evaluates the soup of `subject` and those of `others`, trained for the same objectives.
pub fn evaluate(
    subject: &Subject,
    others: &[Other],
    out: &Path,
    settings: Settings,
) -> Result<Evaluation> {
    let sweep = Sweep::open(subject, others, settings)?;
    claim(out, &sweep.settings.fixed)?;
    let mut book = Book::open(&out.join("answers.jsonl"))?;
    let answered = sweep.ask(&mut book)?;
    let measuring = Measuring::new(&sweep, &book, &answered, out)?;
    let swept = measuring.methods(&answered)?;
    let columns = measuring.columns()?;
    let kls = measuring.backbone_kls()?;
    let run = &subject.run;
    let names: Vec<String> = run.config.objectives.iter().map(|o| o.name.clone()).collect();
    write_atomically(&out.join("samples.csv"), samples(&swept, &names).as_bytes())?;
    let shown = shown(&swept, &sweep.test, &names, &sweep.settings.fixed);
    let (methods, oracles) = compare(swept, columns, &kls, &names, &sweep.standardiser);

    let scales = sweep.standardiser.mean.iter().zip(&sweep.standardiser.std);
    let units = run.rewards.iter().map(|reward| reward.unit().to_owned());
    let objectives = names.into_iter().zip(units).zip(scales);
    let objectives: Vec<Objective> = objectives
        .map(|((name, unit), (mean, std))| Objective { name, unit, mean: *mean, std: *std })
        .collect();
    let Fixed { preferences, temperature, seeds, .. } = &sweep.settings.fixed;
    let front = FrontFile {
        format: FORMAT,
        sha256: sweep.served[0].soup.manifest.weights(),
        reference_point: FrontFile::reference(&objectives),
        objectives,
        controllability_ceiling: controllability_ceiling(preferences),
        temperature: *temperature,
        prompts: sweep.test.len(),
        seeds: seeds.clone(),
        methods,
        oracles,
        selected: answered.selected,
        left_out: sweep.left_out,
    };
    let text = serde_json::to_string_pretty(&front)
        .map_err(|error| EvaluateError::Settings(error.to_string()))?;
    write_atomically(&out.join("front.json"), format!("{text}\n").as_bytes())?;
    Ok(Evaluation { front, shown })
}

/// Turns answers into points.
struct Measuring<'a> {
    sweep: &'a Sweep<'a>,
    book: &'a Book,
    reference: Option<Reference>,
}

impl<'a> Measuring<'a> {
    /// Scores the answers under θ_sft, where they were sampled at T = 1: the log-ratio of answers
    /// drawn at another temperature estimates no KL.
    fn new(sweep: &'a Sweep<'a>, book: &'a Book, answered: &Answered, out: &Path) -> Result<Self> {
        let mut measuring = Self { sweep, book, reference: None };
        if sweep.settings.fixed.temperature != 1.0 {
            return Ok(measuring);
        }
        let mut all = measuring.book.answers(&sweep.asked(0, &sweep.start()));
        for Planned { method, preferences } in &answered.planned {
            for preference in preferences {
                let (_, model) = method.solve(preference)?;
                all.extend(book.answers(&sweep.asked(method.run, &model)));
            }
        }
        for column in &sweep.columns {
            all.extend(book.answers(&sweep.asked(column.run, &sweep.trained_for(column))));
        }
        for &(run, backbone) in &sweep.leaned_on {
            all.extend(book.answers(&sweep.asked(run, &sweep.backbone(run, backbone))));
        }
        let path = out.join("reference.jsonl");
        let frozen = || -> Result<Box<dyn Frozen + '_>> {
            Ok(match &sweep.server {
                Some(server) => Box::new(server),
                None => Box::new(Tape::open(sweep.subject, &sweep.served[0].soup)?),
            })
        };
        measuring.reference = Some(Reference::of(&sweep.test, &all, &path, frozen)?);
        Ok(measuring)
    }

    fn point(
        &self,
        preference: &[f64],
        lambda: Option<Vec<f64>>,
        answers: &[&Answer],
    ) -> Result<Point> {
        let Sweep { test, settings, standardiser, .. } = self.sweep;
        let of = (test.as_slice(), settings.fixed.seeds.as_slice());
        let reference = self.reference.as_ref();
        let point = point(preference, lambda, answers, of, standardiser, reference);
        Ok(point.map_err(RunError::from)?)
    }

    /// Points of θ_sft and of every method that was asked.
    fn methods(&self, answered: &Answered) -> Result<Vec<Swept<'a>>> {
        let sweep = self.sweep;
        let grid = &sweep.settings.fixed.preferences;
        let start = self.book.answers(&sweep.asked(0, &sweep.start()));
        let points = grid.iter().map(|mu| self.point(mu, None, &start)).collect::<Result<_>>()?;
        let front = MethodFront::measure("θ_sft".to_owned(), (None, 0.0), points, None)?;
        let sft = front.points.first().cloned();
        let answers = vec![start; grid.len()];
        let mut swept = vec![Swept { front, answers, extra: Vec::new() }];
        for Planned { method, preferences } in &answered.planned {
            let (mut points, mut answers) = (Vec::new(), Vec::new());
            for preference in preferences {
                let (lambda, model) = method.solve(preference)?;
                let own = self.book.answers(&sweep.asked(method.run, &model));
                points.push(self.point(preference, Some(lambda), &own)?);
                answers.push(own);
            }
            answers.truncate(grid.len());
            let extra = points.split_off(grid.len());
            let kind = (Some(method.kind), method.alpha);
            let front = MethodFront::measure(method.name.clone(), kind, points, sft.as_ref())?;
            let front = MethodFront { run: method.run, ..front };
            swept.push(Swept { front, answers, extra });
        }
        Ok(swept)
    }

    /// The policies that were trained for one preference.
    fn columns(&self) -> Result<Vec<(Column, Point)>> {
        let column = |column: &Column| {
            let model = self.sweep.trained_for(column);
            let answers = self.book.answers(&self.sweep.asked(column.run, &model));
            Ok((column.clone(), self.point(&column.preference, None, &answers)?))
        };
        self.sweep.columns.iter().map(column).collect()
    }

    /// KL of the backbones that corners lean on.
    fn backbone_kls(&self) -> Result<BackboneKls> {
        let mut kls = BackboneKls::new();
        for &(run, backbone) in &self.sweep.leaned_on {
            let model = self.sweep.backbone(run, backbone);
            let answers = self.book.answers(&self.sweep.asked(run, &model));
            kls.extend(self.point(&[], None, &answers)?.kl.map(|kl| ((run, backbone), kl)));
        }
        Ok(kls)
    }
}

/// `samples.csv`.
fn samples(swept: &[Swept<'_>], objectives: &[String]) -> String {
    let mut table = Table::new(objectives);
    for Swept { front, answers, .. } in swept {
        for (point, answers) in front.points.iter().zip(answers) {
            let row = |answer: &&Answer| table.row(&front.method, &point.preference, answer);
            answers.iter().for_each(row);
        }
    }
    table.text
}

/// Prompts whose answers the report shows.
const SHOWN: usize = 4;

/// Answers to the first prompts under the first seed: those of θ_sft, and of the first method at
/// the corners and in the middle of the simplex.
fn shown(
    swept: &[Swept<'_>],
    prompts: &[&Prompt],
    objectives: &[String],
    fixed: &Fixed,
) -> Vec<Shown> {
    let n = objectives.len();
    let label = |point: &Point| {
        let corner = point.preference.iter().position(|w| *w > 1.0 - 1e-9);
        corner.and_then(|index| objectives.get(index).cloned())
    };
    let distance =
        |point: &Point| point.preference.iter().map(|w| (w - 1.0 / n as f64).abs()).sum::<f64>();
    let mut columns: Vec<(String, &[&Answer])> = Vec::new();
    if let [start, rest @ ..] = swept {
        columns.extend(start.answers.first().map(|a| ("θ_sft".to_owned(), a.as_slice())));
        if let Some(method) = rest.first() {
            let all = || method.front.points.iter().zip(&method.answers);
            columns.extend(all().filter_map(|(p, a)| Some((label(p)?, a.as_slice()))));
            let middle = all().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
            columns.extend(middle.map(|(p, a)| {
                let each: Vec<String> = p.preference.iter().map(|w| format!("{w:.2}")).collect();
                (format!("μ = ({})", each.join(", ")), a.as_slice())
            }));
        }
    }
    let each = prompts.iter().take(SHOWN).enumerate().map(|(index, prompt)| Shown {
        prompt: prompt.example.prompt().to_owned(),
        // Answers come prompt by prompt, each under every seed.
        responses: columns
            .iter()
            .filter_map(|(who, answers)| {
                Some((who.clone(), answers.get(index * fixed.seeds.len())?.response.clone()))
            })
            .collect(),
    });
    each.collect()
}

/// Writes the settings of the answers, or checks that the directory has the same ones. Answers name
/// their soup, so other runs and methods may join later; prompts and decoding must stay.
fn claim(out: &Path, fixed: &Fixed) -> Result<()> {
    let path = out.join("evaluation.toml");
    let text = to_toml(&path, fixed)?;
    match fs::read_to_string(&path) {
        Ok(found) if found == text => Ok(()),
        Ok(_) => Err(EvaluateError::Settings(format!(
            "{}: holds another evaluation; choose another directory",
            path.display()
        ))),
        Err(_) => Ok(write_atomically(&path, text.as_bytes())?),
    }
}

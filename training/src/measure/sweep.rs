//! The requests of an evaluation: every method of every run, over the grid of preferences.

use std::path::PathBuf;

use ladle::{preference::MixingMatrix, soup::manifest::BackboneEntry};

use super::{
    answers::{Answer, Asked, Book, Part},
    checks::{comparable, unasked, unserved},
    criterion::{Candidate, by_testing_reward},
    error::EvaluateError,
    methods::{Kind, LeftOut, Method, Model, Told, Trained},
    points::mean,
    results::Selected,
    serve::Served,
    server::{Server, ServerOptions},
    settings::{Fixed, Settings},
    source::{Decoding, Judge, Source},
};
use crate::{
    checkpoint::read_toml,
    config::{MixingConfig, POLICY},
    draw,
    error::RunError,
    metrics::progress,
    rl::balance::Standardiser,
    run::Run,
    setup::Prompt,
};

type Result<T> = std::result::Result<T, EvaluateError>;

/// What is measured.
pub struct Subject {
    /// The run whose data, rewards and limit on answers count.
    pub run: Run,
    /// Directory of the soup and the scale of the rewards, where they are not the run's.
    pub soup: Option<(PathBuf, Standardiser)>,
    /// Who answers, where that is no engine of this process.
    pub server: ServerOptions,
}

/// A run that is compared with the subject.
pub struct Other {
    /// Tells its methods from others of the same name.
    pub label: String,
    pub run: Run,
    /// Only its backbones count, as policies trained for their columns of B.
    pub oracle: bool,
}

/// A backbone as the policy trained for the preference that its column of B is.
#[derive(Debug, Clone)]
pub struct Column {
    /// Run and backbone.
    pub name: String,
    /// Index of the run.
    pub run: usize,
    /// Index of the backbone in it.
    pub backbone: usize,
    /// The column of B.
    pub preference: Vec<f64>,
}

/// A method with the preferences that it answers: the grid, then those of the columns.
pub struct Planned {
    pub method: Method,
    pub preferences: Vec<Vec<f64>>,
}

/// The methods that were asked.
#[derive(Default)]
pub struct Answered {
    /// The methods, in the order of the report.
    pub planned: Vec<Planned>,
    /// The choices of α.
    pub selected: Vec<Selected>,
}

/// Inputs of an evaluation.
pub struct Sweep<'a> {
    /// The run whose rewards and scale judge.
    pub subject: &'a Run,
    /// Its soup first, then the others'.
    pub served: Vec<Served<'a>>,
    /// The server that answers.
    pub server: Option<Server>,
    pub settings: Settings,
    /// Prompts that results are reported on.
    pub test: Vec<&'a Prompt>,
    /// Frozen scale of the rewards.
    pub standardiser: Standardiser,
    /// Methods at α = 0.
    pub methods: Vec<Method>,
    /// Methods that cannot be evaluated.
    pub left_out: Vec<LeftOut>,
    /// Policies trained for one preference.
    pub columns: Vec<Column>,
    /// Run and index of the backbones that corners of λ = B⁻¹μ lean on, where KL is measured.
    pub leaned_on: Vec<(usize, usize)>,
}

impl<'a> Sweep<'a> {
    /// Opens the soups and decides what is compared.
    pub fn open(subject: &'a Subject, others: &'a [Other], settings: Settings) -> Result<Self> {
        let Subject { run: own, soup, server } = subject;
        let n = own.config.objectives.len();
        let settings = settings.checked(n).map_err(EvaluateError::Settings)?;
        let mut served = vec![match soup {
            None => Served::of(own, "")?,
            Some((path, _)) => Served::open(own, "", path.clone(), server.engine.is_none())?,
        }];
        for other in others {
            served.push(Served::of(&other.run, &other.label)?);
        }
        let test = rows(own, &own.test, settings.fixed.prompts, ("data.test", TEST_ROWS))?;
        comparable(&served, &test)?;
        let (mut methods, mut left_out): (Vec<Method>, Vec<LeftOut>) = Default::default();
        let mut columns = Vec::new();
        for (run, soup) in served.iter().enumerate() {
            let nominal = soup.aim.matrix();
            let identity = |b: &MixingMatrix| b.rows() == MixingMatrix::identity(b.len()).rows();
            let identity = nominal.is_some_and(identity);
            let realised = soup.soup.manifest.mixing.realised.as_deref();
            let (label, policy) = (soup.label.as_str(), soup.run.config.one_policy());
            let told = told(soup)?;
            let told = told.as_ref();
            let trained = Trained { run, label, nominal, identity, realised, policy, told };
            let only_columns = run.checked_sub(1).is_some_and(|other| others[other].oracle);
            if !only_columns {
                let (more, out) = trained.methods(&settings.methods, &methods);
                methods.extend(more);
                left_out.extend(out);
            }
            if settings.methods.contains(&Kind::Oracle) {
                columns.extend(columns_of(run, soup));
            }
        }
        if let Some(reason) = unserved(&settings.methods, &methods, !columns.is_empty(), &left_out)
        {
            return Err(EvaluateError::Settings(reason));
        }
        let server = match &server.engine {
            None => None,
            Some(url) => {
                let server = Server::find(url, server, &served[0].soup, longest(own, &settings))?;
                let grid = settings.fixed.preferences.iter();
                let asked = grid.chain(columns.iter().map(|column| &column.preference));
                let asked: Vec<_> = asked.collect();
                for (method, reason) in unasked(&server, &methods, &settings, &asked)? {
                    methods.retain(|other| other.name != method);
                    left_out.push(LeftOut { method, reason });
                }
                Some(server)
            }
        };
        let standardiser = match soup {
            Some((_, standardiser)) => standardiser.clone(),
            None => own.standardiser(own.sft()?.as_ref())?,
        };
        let bones = methods.iter().filter(|method| method.kind == Kind::Bone);
        let bones = bones.filter(|_| settings.fixed.temperature == 1.0);
        let backbones = |method: &Method| {
            let run = method.run;
            (0..served[run].backbones()).map(move |backbone| (run, backbone)).collect::<Vec<_>>()
        };
        let leaned_on = bones.flat_map(backbones).collect();
        Ok(Self {
            subject: own,
            served,
            server,
            settings,
            test,
            standardiser,
            methods,
            left_out,
            columns,
            leaned_on,
        })
    }

    /// The model θ_sft.
    pub fn start(&self) -> Model {
        Model::sft(self.served[0].backbones())
    }

    /// The request of the test prompts to a model.
    pub fn asked<'s>(&'s self, run: usize, model: &'s Model) -> Asked<'s> {
        let (soup, prompts) = (self.served[run].soup.digest.as_str(), self.test.as_slice());
        Asked { soup, model, part: Part::Test, prompts, seeds: &self.settings.fixed.seeds }
    }

    /// The model of a column.
    pub fn trained_for(&self, column: &Column) -> Model {
        self.backbone(column.run, column.backbone)
    }

    /// The model of a backbone alone.
    pub fn backbone(&self, run: usize, backbone: usize) -> Model {
        Model::backbone(backbone, self.served[run].backbones())
    }

    /// Answers everything that `book` lacks, one engine at a time.
    pub fn ask(&self, book: &mut Book) -> Result<Answered> {
        let Fixed { temperature, preferences, .. } = &self.settings.fixed;
        let longest = self.subject.config.rollout.max_new_tokens;
        let judge = Judge {
            subject: self.subject,
            decoding: Decoding { temperature: *temperature, longest },
            bar: progress("evaluate", self.answers(), "answers"),
        };
        let mut answered = Answered::default();
        for (run, soup) in self.served.iter().enumerate() {
            let local;
            let source: &dyn Source = match &self.server {
                Some(server) => server,
                None => {
                    local = soup.engine()?;
                    &local
                }
            };
            let mut models = Vec::from_iter((run == 0).then(|| self.start()));
            let own = self.columns.iter().filter(|column| column.run == run);
            models.extend(own.map(|column| self.trained_for(column)));
            let own = self.leaned_on.iter().filter(|(of, _)| *of == run);
            models.extend(own.map(|&(run, backbone)| self.backbone(run, backbone)));
            for model in &models {
                judge.ask(source, &self.asked(run, model), book)?;
            }
            for method in self.methods.iter().filter(|method| method.run == run) {
                let mut alphas = vec![0.0];
                if self.settings.every_alpha && method.kind.extrapolates() {
                    alphas.clone_from(&self.settings.alphas);
                } else if self.chooses(method) {
                    let selected = self.choose(method, &judge, source, book)?;
                    if selected.best != 0.0 {
                        alphas.push(selected.best);
                        judge.bar.inc_length((preferences.len() * self.rows()) as u64);
                    }
                    answered.selected.push(selected);
                }
                for alpha in alphas {
                    let planned = self.plan(method.extrapolated(alpha));
                    for preference in &planned.preferences {
                        let (_, model) = planned.method.solve(preference)?;
                        judge.ask(source, &self.asked(run, &model), book)?;
                    }
                    answered.planned.push(planned);
                }
            }
        }
        judge.bar.finish();
        Ok(answered)
    }

    /// Whether α is chosen for a method.
    fn chooses(&self, method: &Method) -> bool {
        !self.settings.every_alpha && method.kind.extrapolates() && self.settings.alphas.len() > 1
    }

    /// Answers of a model to the test prompts.
    fn rows(&self) -> usize {
        self.test.len() * self.settings.fixed.seeds.len()
    }

    /// Answers that are asked for whatever α is chosen, those that methods share counted for each.
    fn answers(&self) -> u64 {
        let Fixed { preferences, dev_prompts, seeds, .. } = &self.settings.fixed;
        let (grid, columns) = (preferences.len(), self.columns.len());
        let chosen = self.methods.iter().filter(|method| self.chooses(method)).count();
        let tried = chosen * self.settings.alphas.len() * grid;
        let dev = (*dev_prompts).min(self.subject.validation.len()) * seeds.len();
        let alphas = |method: &Method| match self.settings.every_alpha {
            true if method.kind.extrapolates() => self.settings.alphas.len(),
            _ => 1,
        };
        let sweeps: usize = self.methods.iter().map(alphas).sum();
        let alone = 1 + columns + self.leaned_on.len();
        let points = alone + sweeps * grid + self.methods.len() * columns;
        (points * self.rows() + tried * dev) as u64
    }

    fn plan(&self, method: Method) -> Planned {
        let mut preferences = self.settings.fixed.preferences.clone();
        if method.alpha == 0.0 {
            preferences.extend(self.columns.iter().map(|column| column.preference.clone()));
        }
        Planned { method, preferences }
    }

    /// The α of the best mean testing reward over the grid, on validation prompts.
    fn choose(
        &self,
        method: &Method,
        judge: &Judge<'_>,
        source: &dyn Source,
        book: &mut Book,
    ) -> Result<Selected> {
        let fixed = &self.settings.fixed;
        let run = self.subject;
        let drawn = ("data.validation", run.config.seed);
        let prompts = rows(run, &run.validation, fixed.dev_prompts, drawn)?;
        let mut candidates = Vec::new();
        for &alpha in &self.settings.alphas {
            let method = method.extrapolated(alpha);
            let mut solutions = Vec::new();
            for preference in &fixed.preferences {
                let (_, model) = method.solve(preference)?;
                let asked = Asked {
                    part: Part::Validation,
                    prompts: &prompts,
                    ..self.asked(method.run, &model)
                };
                judge.ask(source, &asked, book)?;
                let means = means(&book.answers(&asked), self.standardiser.mean.len());
                solutions.push(self.standardiser.apply(&means).map_err(RunError::from)?);
            }
            candidates.push(Candidate { value: alpha, solutions });
        }
        let selection = by_testing_reward(&candidates, &fixed.preferences)?;
        Ok(Selected {
            method: method.name.clone(),
            alphas: self.settings.alphas.clone(),
            best: self.settings.alphas[selection.best],
            scores: selection.scores,
        })
    }
}

/// Mean of every reward.
fn means(answers: &[&Answer], objectives: usize) -> Vec<f64> {
    let series =
        |j: usize| answers.iter().filter_map(|answer| answer.rewards[j]).collect::<Vec<_>>();
    (0..objectives).map(|j| mean(&series(j))).collect()
}

/// The backbones trained with fixed weights of the rewards, each at the preference of those
/// weights.
fn columns_of(run: usize, soup: &Served<'_>) -> Vec<Column> {
    if !soup.is_average() {
        return Vec::new();
    }
    let owner = if soup.label.is_empty() { String::new() } else { format!(" of {}", soup.label) };
    let column = |(backbone, entry): (usize, &BackboneEntry)| {
        let preference = soup.aim.preference(backbone)?;
        Some(Column { name: format!("{}{owner}", entry.name), run, backbone, preference })
    };
    soup.soup.manifest.backbones.iter().enumerate().filter_map(column).collect()
}

/// What maps preferences to rewards wanted, of a run whose policy is told them.
fn told(soup: &Served<'_>) -> Result<Option<Told>> {
    let run = soup.run;
    let MixingConfig::Context(settings) = &run.config.mixing else { return Ok(None) };
    if soup.path != run.layout().soup() {
        let reason =
            "--soup: mixing.context maps preferences by what a run keeps: evaluate that run";
        return Err(EvaluateError::Settings(reason.to_owned()));
    }
    let range = read_toml(&run.layout().range(POLICY))?;
    Ok(Some(Told { mapping: settings.mapping, range }))
}

/// Tokens of the longest prompt and answer, and the one more that log-probabilities of both take.
fn longest(run: &Run, settings: &Settings) -> usize {
    let prompts = run.test.iter().chain(&run.validation).map(|prompt| prompt.tokens.len());
    let scored = usize::from(settings.fixed.temperature == 1.0);
    prompts.max().unwrap_or(0) + run.config.rollout.max_new_tokens + scored
}

/// Decides which test rows are drawn: the same for all runs.
const TEST_ROWS: u64 = 0;

/// The first `count` prompts of an order fixed by `seed` (all, if there are fewer).
fn rows<'a>(
    run: &Run,
    prompts: &'a [Prompt],
    count: usize,
    (key, seed): (&str, u64),
) -> Result<Vec<&'a Prompt>> {
    if prompts.is_empty() {
        let reason = format!("{key}: the configuration names no file, and it is evaluated on");
        return Err(EvaluateError::Settings(reason));
    }
    let order = draw::batch(seed, prompts.len(), count.min(prompts.len()), 0);
    let chosen: Vec<&Prompt> = order.into_iter().filter_map(|index| prompts.get(index)).collect();
    for objective in &run.config.objectives {
        if !chosen.iter().any(|prompt| prompt.judges.include(&objective.name)) {
            let (count, name) = (chosen.len(), &objective.name);
            let reason =
                format!("{key}: {name} judges none of the {count} rows chosen, expected some");
            return Err(EvaluateError::Settings(reason));
        }
    }
    Ok(chosen)
}

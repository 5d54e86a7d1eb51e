//! Raw request → checked request, in one place: what leaves here is solved, tokenised and within
//! every bound, and later stages never see what the client wrote.
//!
//! [`json`] parses a body into fields, [`prompt`] reads prompts, [`conversation`] messages,
//! [`tools`] what may be called, [`constraint`] what an answer is held to, [`sampling`] the fields that
//! all generating routes share; [`native`] and [`openai`] put each route's request together, those of
//! conversations as a [`chat::Chat`]. Fields that only other servers have are decided by the table in [`foreign`].

pub mod anthropic;
pub mod chat;
pub mod constraint;
pub mod conversation;
pub mod embeddings;
mod foreign;
pub mod json;
pub mod model;
pub mod native;
pub mod openai;
pub mod prompt;
pub mod responses;
pub mod sampling;
pub mod soups;
pub mod timeout;
pub mod tools;
mod variables;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::HeaderMap;
use serde_json::Value;

use self::{json::Fields, tools::Calls};
use super::{
    error::{ApiError, shorten, show},
    keys::{Key, PRIORITIES},
    served::Served,
    trace::Trace,
};
use crate::{
    config::RequestLimits,
    engine::{Client, GenerateRequest},
    preference::{
        Alpha, AlphaForm, Form, FormError, Goal, LambdaRule, ModelKey, Preference, Solution,
    },
};

/// Longest model id, bytes. It is echoed in every chunk of a stream.
const MAX_MODEL_ID: usize = 4096;
/// JSON values that any body may hold, whatever the context.
const MOST_VALUES: usize = 1 << 17;
/// Header with a preference, for clients that can add no field.
pub const PREFERENCE_HEADER: &str = "x-preference";

/// The context that a request is checked against.
pub struct Context<'a> {
    pub served: &'a Arc<Served>,
    pub limits: &'a RequestLimits,
    pub headers: &'a HeaderMap,
    pub arrived: Instant,
    /// Whom it is counted for.
    pub client: Client,
    /// The key that the request presented, where the server asks for one.
    pub key: Option<Arc<Key>>,
    pub trace: Trace,
}

impl Context<'_> {
    /// Refuses a model that the request's key may not ask for.
    fn permit(&self, solution: &Solution) -> Result<(), ApiError> {
        let Some(Key { presets: Some(presets), name, .. }) = self.key.as_deref() else {
            return Ok(());
        };
        let Served { menu, mixing, .. } = &**self.served;
        let asked = ModelKey::of(&solution.coefficients);
        let permitted = presets.iter().any(|preset| {
            let preference = menu.preference("presets", Form::Preset(preset.clone()));
            preference.is_ok_and(|preference| {
                let solution = mixing.solve_by(menu.default_rule, &preference, &menu.default_alpha);
                ModelKey::of(&solution.coefficients) == asked
            })
        });
        match permitted {
            true => Ok(()),
            false => Err(ApiError::Forbidden(format!(
                "the key {name:?} may ask for these presets only, without alpha and lambda of its \
                 own: {}",
                presets.join(", ")
            ))),
        }
    }
}

impl Context<'_> {
    /// Takes `priority`, within the range of the request's key. None given: the one nearest to 0.
    fn priority(&self, fields: &mut Fields) -> Result<i32, ApiError> {
        let asked = fields.integer("priority", PRIORITIES)?;
        let Some(Key { priority: Some((least, most)), name, .. }) = self.key.as_deref() else {
            return Ok(asked.unwrap_or(0));
        };
        match asked {
            None => Ok(0.clamp(*least, *most)),
            Some(asked) if (*least..=*most).contains(&asked) => Ok(asked),
            Some(asked) => Err(ApiError::Forbidden(format!(
                "priority is {asked}, and the key {name:?} may ask for {least} to {most}"
            ))),
        }
    }

    /// The fields of a body.
    fn parse(&self, body: &[u8]) -> Result<Fields, ApiError> {
        // As many as the prompts of token ids that one request may bring.
        let ids = self.served.context().saturating_mul(self.limits.max_n);
        Fields::parse(body, ids.max(MOST_VALUES))
    }

    /// The deadline of a request that gives itself so much time.
    fn deadline(&self, timeout: Duration) -> Deadline {
        Deadline::after(self.arrived, timeout)
    }
}

/// When a request must be answered.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// `None`: beyond what the clock can say.
    pub at: Option<Instant>,
    timeout: Duration,
}

impl Deadline {
    /// So much time after `arrived`.
    pub fn after(arrived: Instant, timeout: Duration) -> Self {
        Self { at: arrived.checked_add(timeout), timeout }
    }

    /// The error of a request whose deadline has passed.
    pub fn error(&self) -> ApiError {
        ApiError::Deadline { seconds: self.timeout.as_secs_f64() }
    }

    /// What `future` gives, if it does so before the deadline.
    pub async fn keep<T>(&self, future: impl Future<Output = T>) -> Result<T, ApiError> {
        let Some(at) = self.at else { return Ok(future.await) };
        tokio::time::timeout_at(at.into(), future).await.map_err(|_| self.error())
    }

    /// Fails once the deadline has passed.
    fn check(&self) -> Result<(), ApiError> {
        match self.at {
            Some(at) if at <= Instant::now() => Err(self.error()),
            _ => Ok(()),
        }
    }
}

/// A checked generation.
#[derive(Debug)]
pub struct Checked {
    /// The soup that it was checked against and runs on.
    pub served: Arc<Served>,
    /// One request per choice: prompt-major, `n` for each prompt.
    pub requests: Vec<GenerateRequest>,
    /// Choices per prompt.
    pub n: usize,
    /// The solution of all choices, or in a comparison of each one.
    pub solutions: Vec<Solution>,
    /// The model id as asked for, else the soup's name.
    pub model: String,
    pub stream: bool,
    pub usage: StreamUsage,
    /// Time from arrival to the deadline.
    pub timeout: Duration,
    /// Prompts to put before the answers (`echo`), one per prompt; empty: none.
    pub echo: Vec<EchoedPrompt>,
    /// What tells calls of tools from text; `None`: there are none.
    pub calls: Option<Calls>,
    /// Only the prompt is wanted (`max_tokens: 0`): the one token that is generated is dropped.
    pub prompt_only: bool,
    /// The key that is charged for it, where the server asks for one.
    pub key: Option<Arc<Key>>,
    pub trace: Trace,
}

/// A prompt that stands before its answers.
#[derive(Debug, Clone)]
pub struct EchoedPrompt {
    pub text: String,
    /// Where each of its tokens starts in `text`, in characters; empty without log-probabilities.
    pub offsets: Vec<usize>,
}

impl Checked {
    /// The most tokens that it may take; a prompt counts once however many choices it has.
    pub fn most_tokens(&self) -> usize {
        let of = |(index, request): (usize, &GenerateRequest)| {
            let prompt = if index % self.n == 0 { request.prompt.len() } else { 0 };
            prompt + request.max_tokens
        };
        self.requests.iter().enumerate().map(of).sum()
    }

    /// Whether log-probabilities were asked for.
    pub fn wants_logprobs(&self) -> bool {
        self.requests.iter().any(|request| request.sampling.logprobs.is_some())
    }
}

/// When the chunks of an OpenAI stream carry the usage (`stream_options`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamUsage {
    #[default]
    Never,
    /// One chunk at the end (`include_usage`).
    AtEnd,
    /// Every chunk, with what was used so far (`continuous_usage_stats`).
    Always,
}

/// A model id of the served soup, `NAME` or `NAME:PREFERENCE`.
pub struct Model {
    pub id: String,
    /// What follows the colon.
    preference: Option<String>,
}

impl Model {
    /// The model that `id` names; none named: the soup.
    fn named(served: &Served, id: Option<String>) -> Result<Self, ApiError> {
        let Some(id) = id else { return Ok(Self { id: served.name.clone(), preference: None }) };
        if id.len() > MAX_MODEL_ID {
            let expected = format!("a model id of at most {MAX_MODEL_ID} bytes");
            return Err(ApiError::value("model", show(&id.into()), expected));
        }
        let preference = match id.strip_prefix(&served.name) {
            Some("") => None,
            Some(rest) if rest.starts_with(':') => Some(rest[1..].to_owned()),
            _ => {
                let reason = format!("this server has {:?}", served.name);
                return Err(ApiError::Model { name: shorten(&id), reason });
            }
        };
        Ok(Self { id, preference })
    }

    /// The model of a request's body.
    fn take(served: &Served, fields: &mut Fields) -> Result<Self, ApiError> {
        Self::named(served, fields.text("model")?)
    }

    /// The model of a path, which exists if its preference means something here.
    pub fn of_path(served: &Served, id: &str) -> Result<Self, ApiError> {
        let model = Self::named(served, Some(id.to_owned()))?;
        if let Some(text) = &model.preference {
            let form = Form::from_text("its preference", text);
            form.and_then(|form| served.menu.preference("its preference", form)).map_err(
                |error| ApiError::Model { name: shorten(id), reason: error.to_string() },
            )?;
        }
        Ok(model)
    }
}

/// The model that answers: its id, and the λ and c that the request's preference, or in a
/// comparison each preference, is solved to.
pub struct Target {
    model: String,
    solutions: Vec<Solution>,
}

impl Target {
    /// Takes `weights`, and with it nothing or `model`, `preference` or `target` with `maximise`, `alpha` and
    /// `lambda`. Precedence: the body's `preference` or `target`, the model id, the header, the soup's preset
    /// for the `reasoning_effort`, the soup's default. Only the form that counts is looked at.
    fn take(context: &Context<'_>, fields: &mut Fields) -> Result<Self, ApiError> {
        let sft = |value: &Value| match value.as_str()? {
            "merged" => Some(false),
            "sft" => Some(true),
            _ => None,
        };
        let expected = || "\"merged\" or \"sft\"".to_owned();
        match fields.convert("weights", sft, expected)?.unwrap_or(false) {
            true => Self::sft(context, fields),
            false => Self::merged(context, fields),
        }
    }

    fn merged(context: &Context<'_>, fields: &mut Fields) -> Result<Self, ApiError> {
        let Context { served, headers, .. } = context;
        let (menu, model) = (&served.menu, Model::take(served, fields)?);
        let given = fields.take("preference");
        let solver = Solver::take(served, fields)?;
        let goal = goal(served, fields)?;
        let preference = if let Some(value) = given {
            if goal.is_some() {
                return Err(ApiError::value(
                    "preference",
                    show(&value),
                    "either preference or target",
                ));
            }
            menu.preference("preference", Form::from_json("preference", value)?)?
        } else if let Some(goal) = &goal {
            let nowhere = |reason: &String| {
                let got = format!("asked, but {reason}");
                FormError::value("target", got, "a soup with a measured front")
            };
            let front = served.front.as_ref().map_err(nowhere)?;
            goal.solve(menu, front, solver.rule, &solver.alpha)?
        } else if let Some(text) = &model.preference {
            menu.preference("model", Form::from_text("model", text)?)?
        } else if let Some(header) = headers.get(PREFERENCE_HEADER) {
            let expected = "a preference such as helpful=0.7,harmless=0.3";
            let text = header
                .to_str()
                .map_err(|_| ApiError::value("X-Preference", "not ASCII", expected))?;
            menu.preference("X-Preference", Form::from_text("X-Preference", text)?)?
        } else if let Some(form) = effort(fields).and_then(|effort| menu.of_effort(effort)) {
            menu.preference("reasoning_effort", form)?
        } else {
            menu.default_preference.clone()
        };
        let mut solution = solver.solve(served, &preference);
        context.permit(&solution)?;
        if goal.is_some() {
            predict(served, &mut solution);
        }
        Ok(Self { model: model.id, solutions: vec![solution] })
    }

    /// θ_sft itself, which is α = −1 whatever the preference.
    fn sft(context: &Context<'_>, fields: &mut Fields) -> Result<Self, ApiError> {
        for name in ["preference", "target", "maximise", "alpha", "lambda"] {
            if let Some(value) = fields.take(name) {
                let expected = "nothing beside weights \"sft\", which no backbone changes";
                return Err(fields.refuse(name, &value, expected));
            }
        }
        let Context { served, headers, .. } = context;
        if headers.contains_key(PREFERENCE_HEADER) {
            return Err(ApiError::value("X-Preference", "given", "none beside weights \"sft\""));
        }
        let Model { id, preference } = Model::take(served, fields)?;
        if preference.is_some() {
            let expected = format!("{:?} beside weights \"sft\"", served.name);
            return Err(fields.refuse("model", &id.into(), expected));
        }
        let solver = Solver { alpha: Alpha::Scalar(-1.0), rule: served.menu.default_rule };
        let solution = solver.solve(served, &served.menu.default_preference);
        context.permit(&solution)?;
        Ok(Self { model: id, solutions: vec![solution] })
    }

    /// As [`Self::take`]; a body with `preferences` gives several to compare instead of one.
    fn take_compared(context: &Context<'_>, fields: &mut Fields) -> Result<Self, ApiError> {
        let Some(value) = fields.take("preferences") else { return Self::take(context, fields) };
        let Context { served, limits, .. } = context;
        let forms = match value {
            Value::Array(forms) if (2..=limits.max_n).contains(&forms.len()) => forms,
            other => {
                let expected = match limits.max_n {
                    0 | 1 => "nothing: this server gives one answer a request".to_owned(),
                    most => format!("a list of 2 to {most} preferences"),
                };
                return Err(fields.refuse("preferences", &other, expected));
            }
        };
        if let Some(value) = fields.take("preference") {
            let expected = "either preference or preferences";
            return Err(ApiError::value("preference", show(&value), expected));
        }
        if goal(served, fields)?.is_some() {
            return Err(ApiError::value("target", "given beside preferences", "one of the two"));
        }
        if let Some(value) = fields.take("weights").filter(|value| value != "merged") {
            return Err(fields.refuse("weights", &value, "\"merged\" beside preferences"));
        }
        let (model, solver) = (Model::take(served, fields)?, Solver::take(served, fields)?);
        let solve = |(index, form)| {
            let field = format!("preferences[{index}]");
            let preference = served.menu.preference(&field, Form::from_json(&field, form)?)?;
            let solution = solver.solve(served, &preference);
            context.permit(&solution)?;
            Ok(solution)
        };
        let solutions = forms.into_iter().enumerate().map(solve);
        Ok(Self { model: model.id, solutions: solutions.collect::<Result<_, ApiError>>()? })
    }
}

/// Takes `target` and `maximise`.
fn goal(served: &Served, fields: &mut Fields) -> Result<Option<Goal>, ApiError> {
    match (fields.take("target"), fields.take("maximise")) {
        (None, None) => Ok(None),
        (target, maximise) => Ok(Some(Goal::from_json(&served.menu, target, maximise)?)),
    }
}

/// Adds to a solution what its rewards are expected to be, or why that is not known.
fn predict(served: &Served, solution: &mut Solution) {
    let front = served.front.as_ref().map_err(String::clone);
    solution.predicted = Some(front.and_then(|front| front.predict(solution)));
}

/// `reasoning_effort`, which templates read too.
fn effort(fields: &Fields) -> Option<&str> {
    fields.peek("reasoning_effort")?.as_str()
}

/// How a preference becomes λ and c.
struct Solver {
    alpha: Alpha,
    rule: LambdaRule,
}

impl Solver {
    /// Takes `alpha` and `lambda`; what is not given is the soup's.
    fn take(served: &Served, fields: &mut Fields) -> Result<Self, ApiError> {
        let menu = &served.menu;
        let alpha = match fields.take("alpha") {
            Some(value) => menu.alpha("alpha", AlphaForm::from_json("alpha", value)?)?,
            None => menu.default_alpha.clone(),
        };
        let rule = match fields.take("lambda") {
            Some(value) => menu.rule("lambda", &value)?,
            None => menu.default_rule,
        };
        Ok(Self { alpha, rule })
    }

    fn solve(&self, served: &Served, preference: &Preference) -> Solution {
        served.mixing.solve_by(self.rule, preference, &self.alpha)
    }
}

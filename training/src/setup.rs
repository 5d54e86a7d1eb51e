//! Inputs of a run, opened and checked before anything is computed: the base model and the prompts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ladle::{
    chat::{ChatTemplate, Conversation, Message as ChatMessage, generation_prompt},
    import::check_base,
    kernels::HostTensor,
    model::config::ModelConfig,
    soup::{Activation, ActiveFrom, Checkpoint},
    tokenizer::{TextDecoder, Tokenizer},
};

use crate::{
    config::{DataConfig, DataFormat},
    data::{self, Example, general::Columns, prompt::PromptTemplate},
    rewards::{Judges, Sample},
    rl::rollout::{Request, Rollout},
    weights,
};

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The base model cannot be used.
    #[error("base {dir}: {reason}")]
    Base { dir: PathBuf, reason: String },
    /// The data cannot be used.
    #[error("{path}: {reason}")]
    Data { path: PathBuf, reason: String },
    /// A data file cannot be read, or a row of it: file and line are named.
    #[error("{0}")]
    Rows(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, SetupError>;

/// A base model with its tokenizer and chat template.
pub struct Base {
    /// Where it was opened.
    pub dir: PathBuf,
    /// Its configuration.
    pub model: ModelConfig,
    /// Its tensors by Hugging Face name, as stored.
    pub weights: BTreeMap<String, HostTensor>,
    pub tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
}

/// A tokenised prompt with the example that it came from.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Tokens up to where the response begins.
    pub tokens: Vec<u32>,
    pub example: Example,
    /// The rewards that judge responses to it.
    pub judges: Judges,
    /// Position of the generation prompt, which opens the response; `None` without a chat template.
    pub opening: Option<usize>,
}

impl Prompt {
    /// First row that adapters of the given activation act on; `None`: every row.
    pub fn active_from(&self, activation: Activation) -> Option<usize> {
        let from = match activation {
            Activation::All => ActiveFrom::Start,
            Activation::Answer => ActiveFrom::GenerationPrompt,
        };
        // Only invocation tokens can be missing from a prompt.
        from.position(&self.tokens, self.opening).ok().flatten()
    }

    /// A response to be drawn from random stream number `stream`.
    pub fn request(&self, activation: Activation, stream: u64) -> Request {
        let active_from = self.active_from(activation);
        Request { active_from, ..Request::drawn(&self.tokens, stream) }
    }

    /// The sample that rewards score, for a response to this prompt.
    pub fn sample(&self, response: String, finished: bool) -> Sample {
        Sample {
            prompt: self.example.prompt().to_owned(),
            response,
            finished,
            references: self.example.references.clone(),
            fields: self.example.fields.clone(),
            judges: self.judges.clone(),
        }
    }
}

impl Base {
    /// Opens a Hugging Face directory, of a model that can be served.
    pub fn open(dir: &Path) -> Result<Self> {
        let error = |reason: String| SetupError::Base { dir: dir.to_owned(), reason };
        check_base(dir).map_err(|e| error(e.to_string()))?;
        let checkpoint = Checkpoint::open(dir).map_err(|e| error(e.to_string()))?;
        let model =
            ModelConfig::from_json(checkpoint.config()).map_err(|e| error(e.to_string()))?;
        let weights = weights::tensors(&checkpoint, &model).map_err(error)?;
        let tokenizer = Tokenizer::from_dir(dir).map_err(|e| error(e.to_string()))?;
        if tokenizer.eos().is_empty() {
            return Err(error(
                "no end-of-sequence token is named, so no response could end".into(),
            ));
        }
        let chat = ChatTemplate::from_dir(dir).map_err(|e| error(e.to_string()))?;
        Ok(Self { dir: dir.to_owned(), model, weights, tokenizer, chat })
    }

    /// The tokens of an example's conversation, up to where the answer begins.
    pub fn prompt(&self, example: &Example) -> std::result::Result<Vec<u32>, String> {
        let Some(chat) = &self.chat else {
            return self.tokenizer.encode(example.prompt(), true).map_err(|e| e.to_string());
        };
        let conversation = Conversation {
            messages: example.messages.iter().map(chat_message).collect(),
            add_generation_prompt: true,
            ..Conversation::default()
        };
        let text = chat.render(&conversation).map_err(|e| e.to_string())?;
        self.tokenizer.encode(&text, false).map_err(|e| e.to_string())
    }

    /// The prompt with words behind the user's last turn; its example stays as it is.
    pub fn told(&self, prompt: &Prompt, words: &str) -> std::result::Result<Prompt, String> {
        let mut example = prompt.example.clone();
        let turn = example.messages.iter_mut().rev().find(|m| m.role == data::Role::User);
        if let Some(turn) = turn {
            turn.content = format!("{} {words}", turn.content);
        }
        let tokens = self.prompt(&example)?;
        let opening = self.opening(&example, &tokens)?;
        Ok(Prompt { tokens, opening, ..prompt.clone() })
    }

    /// Where the generation prompt begins in the prompt `tokens` of an example.
    fn opening(
        &self,
        example: &Example,
        tokens: &[u32],
    ) -> std::result::Result<Option<usize>, String> {
        let Some(chat) = &self.chat else { return Ok(None) };
        let messages = example.messages.iter().map(chat_message).collect();
        let turns = chat.render(&Conversation { messages, ..Conversation::default() });
        let turns = self.tokenizer.encode(&turns.map_err(|e| e.to_string())?, false);
        let turns = turns.map_err(|e| e.to_string())?;
        Ok(Some(generation_prompt::start(tokens, &turns)))
    }

    /// The tokens of a written response, end of sequence included.
    pub fn response(&self, text: &str) -> std::result::Result<Vec<u32>, String> {
        let mut tokens = self.tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        tokens.extend(self.tokenizer.eos().first());
        Ok(tokens)
    }

    /// Reads a file of the configured format, puts the template around each prompt and tokenises
    /// it. Rows whose prompt is too long are left out; their number is the second result.
    pub fn prompts(&self, config: &DataConfig, path: &Path) -> Result<(Vec<Prompt>, usize)> {
        let error = |reason: String| SetupError::Data { path: path.to_owned(), reason };
        let examples = read_examples(config, path).map_err(SetupError::Rows)?;
        let judges = Judges::of(config.rewards.as_deref());
        let mut prompts = Vec::with_capacity(examples.len());
        let mut long = 0;
        for example in examples {
            let named = |reason: String| error(format!("row {}: {reason}", example.id));
            let tokens = self.prompt(&example).map_err(named)?;
            if tokens.is_empty() {
                return Err(named("the prompt has no tokens".into()));
            }
            if tokens.len() > config.max_prompt_tokens {
                long += 1;
                continue;
            }
            let opening = self.opening(&example, &tokens).map_err(named)?;
            prompts.push(Prompt { tokens, example, judges: judges.clone(), opening });
        }
        if prompts.is_empty() {
            let limit = config.max_prompt_tokens;
            return Err(error(format!("no row has a prompt of at most {limit} tokens")));
        }
        Ok((prompts, long))
    }

    /// The sample that rewards score, for a rollout.
    pub fn sample(&self, prompt: &Prompt, rollout: &Rollout) -> Sample {
        prompt.sample(self.tokenizer.decode(&rollout.tokens, true), rollout.finished)
    }

    /// For each token of a response, the length in bytes of the text up to and including it.
    pub fn ends(&self, tokens: &[u32]) -> Vec<usize> {
        let mut decoder = TextDecoder::new(&self.tokenizer, true);
        let mut written = 0;
        let mut ends: Vec<usize> = tokens
            .iter()
            .map(|&token| {
                written += decoder.push(token).len();
                written
            })
            .collect();
        if let Some(last) = ends.last_mut() {
            *last += decoder.finish().len();
        }
        ends
    }
}

fn chat_message(message: &data::Message) -> ChatMessage {
    let role = match message.role {
        data::Role::System => "system",
        data::Role::User => "user",
        data::Role::Assistant => "assistant",
    };
    ChatMessage::new(role, message.content.clone())
}

fn read_examples(config: &DataConfig, path: &Path) -> std::result::Result<Vec<Example>, String> {
    let mode = config.malformed;
    let template = match (&config.template, config.format) {
        (None, DataFormat::Jsonl) => return Err("format jsonl needs data.template".to_owned()),
        (Some(_), DataFormat::Jsonl) => None, // the reader renders it itself
        (Some(source), _) => Some(PromptTemplate::new(source).map_err(|e| e.to_string())?),
        (None, _) => None,
    };
    let read = match config.format {
        DataFormat::Scitldr => data::scitldr::read(path, mode).map(|rows| rows.rows),
        DataFormat::Tldr => data::tldr::read(path, mode).map(|rows| rows.rows),
        DataFormat::Ecinstruct => data::shopping::read_ecinstruct(path, mode).map(|rows| rows.rows),
        DataFormat::ShoppingMmlu => data::shopping::read_mmlu(path, mode).map(|rows| rows.rows),
        DataFormat::ShoppingMmluChoices => {
            data::shopping::read_mmlu_choices(path, mode).map(|rows| rows.rows)
        }
        DataFormat::QaFeedback => data::qa_feedback::read(path, mode)
            .map(|rows| rows.rows.into_iter().map(|row| row.example).collect()),
        DataFormat::HhRlhf => data::hh_rlhf::read(path, mode).map(|rows| {
            let example = |pair: data::Pair| Example {
                id: pair.id,
                messages: pair.messages,
                references: vec![pair.chosen],
                fields: pair.fields,
                others: vec![pair.rejected],
            };
            rows.rows.into_iter().map(example).collect()
        }),
        DataFormat::Alce => data::alce::read(path, config.documents, mode).map(|rows| rows.rows),
        DataFormat::Jsonl => {
            let prompt = config.template.clone().unwrap_or_default();
            let (reference, id) = (config.reference.clone(), config.id.clone());
            data::general::read(path, &Columns { prompt, reference, id }, mode)
                .map(|rows| rows.rows)
        }
    };
    let examples = read.map_err(|e| e.to_string())?;
    match template {
        None => Ok(examples),
        Some(template) => examples
            .iter()
            .map(|example| {
                let named = |e: String| {
                    format!("{}: row {}: data.template: {e}", path.display(), example.id)
                };
                template.apply(example).map_err(named)
            })
            .collect(),
    }
}

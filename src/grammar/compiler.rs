//! Constraints become grammars, within limits.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    time::{Duration, Instant},
};

use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory, api::ParserLimits, earley::SlicedBiasComputer};
use rayon::ThreadPool;

use super::{Constraint, Grammar, GrammarError, vocabulary};
use crate::tokenizer::Tokenizer;

/// Longest time for which a request waits for its grammar.
const PATIENCE: Duration = Duration::from_secs(5);
/// Grammars that are kept for the next request with the same constraint.
const KEPT: usize = 32;
/// Threads that compile.
const COMPILERS: usize = 2;
/// Longest reason of a refusal, characters.
const SHOWN: usize = 300;

/// What a grammar may cost. A mask takes at most about 10 ms.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Compiles constraints for one vocabulary.
pub struct Compiler {
    tokenizer: Tokenizer,
    vocabulary: usize,
    /// Made for the first constraint.
    workshop: OnceLock<Result<Workshop, GrammarError>>,
    /// Most recent first.
    kept: Mutex<VecDeque<(Arc<Constraint>, Grammar)>>,
}

/// The vocabulary as llguidance needs it, and the threads.
struct Workshop {
    factory: Arc<ParserFactory>,
    compilers: ThreadPool,
    masks: Arc<ThreadPool>,
}

impl Workshop {
    fn new(tokenizer: &Tokenizer, vocabulary: usize) -> Result<Self, GrammarError> {
        let broken = |error: String| GrammarError::Invalid(error);
        let tokens = vocabulary::trie(tokenizer, vocabulary)?;
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&tokens, capabilities, &slices);
        let mut factory = factory.map_err(|error| broken(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let pool = |name: &'static str, threads| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = builder.thread_name(move |n| format!("{name}-{n}")).build();
            pool.map_err(|error| broken(error.to_string()))
        };
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Ok(Self {
            factory: Arc::new(factory),
            compilers: pool("grammar", COMPILERS)?,
            masks: Arc::new(pool("masks", (cores / 4).clamp(1, 4))?),
        })
    }
}

impl Compiler {
    /// A compiler for the tokens below `vocabulary`. Costs nothing until the first constraint comes.
    pub fn new(tokenizer: Tokenizer, vocabulary: usize) -> Self {
        Self { tokenizer, vocabulary, workshop: OnceLock::new(), kept: Mutex::default() }
    }

    /// The grammar of a constraint. Blocks for at most five seconds while another thread compiles
    /// it; for the first one also while the vocabulary is sorted.
    pub fn compile(&self, constraint: Constraint) -> Result<Grammar, GrammarError> {
        if let Some(grammar) = self.find(&constraint) {
            return Ok(grammar);
        }
        let source = constraint.grammar()?;
        let workshop =
            self.workshop.get_or_init(|| Workshop::new(&self.tokenizer, self.vocabulary));
        let workshop = workshop.as_ref().map_err(GrammarError::clone)?;
        let (tell, told) = mpsc::sync_channel(1);
        let (factory, masks) = (workshop.factory.clone(), workshop.masks.clone());
        let begin = Instant::now();
        workshop.compilers.spawn(move || {
            if begin.elapsed() < PATIENCE {
                let parser = || Grammar::new(Matcher::new(factory.create_parser(source)), masks);
                // Who waited may have gone. After a panic nothing is told.
                let compiled = catch_unwind(AssertUnwindSafe(parser));
                let _ = compiled.map(|compiled| tell.send(compiled));
            }
        });
        let compiled = match told.recv_timeout(PATIENCE) {
            Ok(compiled) => compiled.map_err(|reason| GrammarError::Invalid(short(&reason))),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = PATIENCE.as_secs();
                Err(GrammarError::Invalid(format!("it does not compile within {seconds} s")))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(GrammarError::Invalid("it cannot be compiled".to_owned()))
            }
        }?;
        self.keep(constraint, &compiled);
        Ok(compiled)
    }

    fn find(&self, constraint: &Constraint) -> Option<Grammar> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(other, _)| **other == *constraint)?;
        let found = kept.remove(place)?;
        kept.push_front(found);
        kept.front().map(|(_, grammar)| grammar.clone())
    }

    fn keep(&self, constraint: Constraint, grammar: &Grammar) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front((Arc::new(constraint), grammar.clone()));
        kept.truncate(KEPT);
    }
}

/// A reason without the parser's state, in one line of bounded length.
fn short(reason: &str) -> String {
    let reason = reason.split("\n<").next().unwrap_or_default();
    let words: Vec<&str> = reason.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN).collect()
}

//! Whole answers of an engine.

use std::time::{Duration, Instant};

use ladle::engine::{
    EngineError, EngineHandle, Event, Finished, GenerateRequest, Generation, Started, Token,
    TokenLogprob,
};

#[derive(Debug, Default)]
pub struct Answer {
    pub started: Option<Started>,
    pub prompt: Vec<TokenLogprob>,
    pub tokens: Vec<Token>,
    pub finished: Option<Finished>,
    pub failed: Option<EngineError>,
}

impl Answer {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    pub fn take(&mut self, event: Event) {
        assert!(self.finished.is_none() && self.failed.is_none(), "{event:?} after the end");
        match event {
            Event::Started(started) => self.started = Some(started),
            Event::Prompt(prompt) => self.prompt = prompt,
            Event::Embedding(_) => panic!("an embedding of a generation"),
            Event::Token(token) => self.tokens.push(token),
            Event::Finished(finished) => self.finished = Some(finished),
            Event::Failed(error) => self.failed = Some(error),
        }
    }
}

/// Takes a whole answer.
pub fn collect(mut generation: Generation) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = generation.blocking_next() {
        answer.take(event);
    }
    assert!(answer.finished.is_some() != answer.failed.is_some(), "no end: {answer:?}");
    answer
}

pub fn run(engine: &EngineHandle, request: GenerateRequest) -> Answer {
    collect(engine.submit(request).unwrap())
}

/// Waits until the engine is idle, then checks that nothing is held.
pub fn settled(engine: &EngineHandle) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = engine.stats();
        if stats.running == 0 && stats.waiting == 0 && stats.kv_used == 0 {
            assert_eq!(stats.integrity_failures, 0);
            return;
        }
        assert!(Instant::now() < deadline, "still held: {stats:?}");
        std::thread::yield_now();
    }
}

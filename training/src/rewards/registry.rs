//! Builds rewards from their settings.

use super::{
    PerSample, Range, Reward, RewardError, Sample,
    citation::{claim_recall, judge, words_entail},
    classifier::{SequenceClassifier, TokenClassifier},
    http::HttpReward,
    labels::{Confusion, accuracy, given, hit_rate, listed_items, listed_numbers, ndcg},
    neural::{Before, EmbeddingCosine, Judge, Reads, SequenceReward, SpanReward},
    overlap::{bleu_4, exact_match_recall, rouge_l},
    pattern,
    sentiment::Lexicon,
    spec::{self, RewardSpec},
    style::{Brevity, flesch_reading_ease, plain_words},
};
use serde_json::Value;
use std::path::PathBuf;

/// Builds a reward: reads models and lexicons and compiles patterns, without sending requests.
pub fn build(name: &str, spec: RewardSpec) -> Result<Box<dyn Reward>, RewardError> {
    let wrong = |reason: String| RewardError::Config { reward: name.into(), reason };
    let before = |template: Option<String>| {
        Before::new(template.as_deref()).map_err(|e| wrong(e.to_string()))
    };
    Ok(match spec {
        RewardSpec::RougeL { stem } => per_sample(name, "ROUGE-L F", Range::UNIT, move |s| {
            let each = s.references()?.iter().map(|r| rouge_l(&s.response, r, stem));
            Ok(each.fold(0.0, f64::max))
        }),
        RewardSpec::Bleu4 { lowercase } => per_sample(name, "BLEU-4", Range::UNIT, move |s| {
            Ok(bleu_4(&s.response, s.references()?, lowercase))
        }),
        RewardSpec::ExactMatchRecall {} => per_sample(name, "share of answers", Range::UNIT, |s| {
            Ok(exact_match_recall(&s.response, &accepted_answers(s)?))
        }),
        RewardSpec::Accuracy {} => per_sample(name, "share right", Range::UNIT, |s| {
            Ok(accuracy(&s.response, s.text("label")?))
        }),
        RewardSpec::MicroF1 {} => per_sample(name, "F1", Range::UNIT, |s| {
            let right: Vec<String> = list(s, "labels", |v| v.as_str().map(str::to_string))?;
            Ok(Confusion::of(&given(&s.response), &right).f1())
        }),
        RewardSpec::HitRate { k } => per_sample(name, "share found", Range::UNIT, move |s| {
            let right = list(s, "relevance", |v| v.as_u64().map(|n| n as usize))?;
            Ok(hit_rate(&numbers(s)?, &right, k))
        }),
        RewardSpec::Ndcg { gain } => per_sample(name, "NDCG", Range::UNIT, move |s| {
            let grades = list(s, "relevance", Value::as_f64)?;
            Ok(ndcg(&numbers(s)?, &grades, gain))
        }),
        RewardSpec::Citation { measure, nli, word_share, most } => {
            let entails = entailment(nli, word_share).map_err(wrong)?;
            per_sample(name, "share", Range::UNIT, move |s| {
                let documents = list(s, "docs", |v| v.as_str().map(str::to_string))?;
                let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
                Ok(judge(&s.response, &documents, most, &entails)?.of(measure))
            })
        }
        RewardSpec::ClaimRecall { nli, word_share } => {
            let entails = entailment(nli, word_share).map_err(wrong)?;
            per_sample(name, "share of claims", Range::UNIT, move |s| {
                let claims = list(s, "claims", |v| v.as_str().map(str::to_string))?;
                claim_recall(&s.response, &claims, &entails)
            })
        }
        RewardSpec::Brevity(brevity) => {
            if !(brevity.span > 0.0 && brevity.full.is_finite()) {
                let Brevity { full, span, .. } = brevity;
                return Err(wrong(format!(
                    "full is {full} and span {span}, expected a finite full and a span > 0"
                )));
            }
            per_sample(name, "share of brevity", Range::UNIT, move |s| Ok(brevity.score(s)))
        }
        RewardSpec::Readability {} => {
            let range = Range { low: -100.0, high: 121.22 };
            per_sample(name, "Flesch points", range, |s| Ok(flesch_reading_ease(&s.response)))
        }
        RewardSpec::PlainWords { least } => {
            per_sample(name, "share of everyday words", Range::UNIT, move |s| {
                Ok(plain_words(&s.response, least))
            })
        }
        RewardSpec::Sentiment { lexicon } => {
            let own = lexicon.map(|path| Lexicon::read(&path)).transpose().map_err(wrong)?;
            per_sample(name, "balance", Range::SIGNED, move |s| {
                Ok(own.as_ref().unwrap_or(Lexicon::built_in()).score(&s.response))
            })
        }
        RewardSpec::Regex { pattern, how } => {
            let regex = pattern::compile(&pattern, how).map_err(|e| wrong(e.to_string()))?;
            per_sample(name, "0 or 1", Range::UNIT, move |s| {
                Ok(pattern::matches(&regex, how, &s.response))
            })
        }
        RewardSpec::Json { keys } => per_sample(name, "0 or 1", Range::UNIT, move |s| {
            Ok(pattern::valid_json(&s.response, &keys))
        }),
        RewardSpec::EmbeddingCosine { path, against } => {
            Box::new(EmbeddingCosine::open(name, &path, against)?)
        }
        RewardSpec::SequenceClassifier { path, label, activation, response_only, template } => {
            let reads = match response_only {
                true if template.is_some() => {
                    return Err(wrong("`template` has no use with `response_only`".into()));
                }
                true => Reads::Response,
                false => Reads::Both(before(template)?),
            };
            let model = SequenceClassifier::open(&path).map_err(|e| wrong(e.to_string()))?;
            Box::new(SequenceReward::new(name, model, label, activation, reads)?)
        }
        RewardSpec::SpanClassifier {
            path,
            error,
            segment,
            good,
            bad,
            reading,
            verdict,
            template,
        } => {
            if !(good.is_finite() && bad.is_finite()) {
                let reason = format!("good is {good} and bad {bad}, expected finite numbers");
                return Err(wrong(reason));
            }
            let (before, rewards) = (before(template)?, [good, bad]);
            let judge = Judge { segment, reading, verdict, rewards };
            let model = TokenClassifier::open(&path).map_err(|e| wrong(e.to_string()))?;
            Box::new(SpanReward::new(name, model, before, &error, judge)?)
        }
        RewardSpec::Mauve {} => {
            return Err(wrong(
                "mauve compares two sets of texts, so no single response has a score; measure it \
                 with `train-backbones mauve`"
                    .into(),
            ));
        }
        RewardSpec::Http(config) => Box::new(HttpReward::new(name.into(), config)?),
    })
}

fn per_sample(
    name: &str,
    unit: &'static str,
    range: Range,
    judge: impl Fn(&Sample) -> Result<f64, String> + Send + Sync + 'static,
) -> Box<dyn Reward> {
    Box::new(PerSample { name: name.into(), unit, range, judge })
}

/// A field that is a list of one type.
fn list<T>(
    sample: &Sample,
    field: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, String> {
    let value = sample.fields.get(field).ok_or_else(|| format!("no field `{field}`"))?;
    let items = value.as_array().ok_or_else(|| format!("field `{field}` is not a list"))?;
    let wrong = |item: &Value| format!("field `{field}` holds {item}");
    items.iter().map(|item| read(item).ok_or_else(|| wrong(item))).collect()
}

/// Accepted answers of every question: `fields.qa_pairs[].short_answers`, else the references.
fn accepted_answers(sample: &Sample) -> Result<Vec<Vec<String>>, String> {
    if !sample.fields.contains_key("qa_pairs") {
        return Ok(sample.references()?.iter().map(|r| vec![r.clone()]).collect());
    }
    list(sample, "qa_pairs", |pair| {
        let answers = pair.get("short_answers")?.as_array()?;
        answers.iter().map(|a| a.as_str().map(str::to_string)).collect()
    })
}

/// The numbers of the items that a response lists, which it calls by `fields.items` where there are
/// such names.
fn numbers(sample: &Sample) -> Result<Vec<usize>, String> {
    if !sample.fields.contains_key("items") {
        return Ok(listed_numbers(&sample.response));
    }
    let names = list(sample, "items", |v| v.as_str().map(str::to_string))?;
    Ok(listed_items(&sample.response, &names))
}

/// Whether a premise supports a claim: by the entailment model in `nli`, else by words.
fn entailment(
    nli: Option<PathBuf>,
    word_share: f64,
) -> Result<impl Fn(&str, &str) -> Result<bool, String>, String> {
    if nli.is_some() && word_share != spec::word_share() {
        return Err("`word_share` has no use with `nli`".into());
    }
    let model = nli.map(|path| SequenceClassifier::open(&path)).transpose();
    let model = model.map_err(|e| e.to_string())?;
    let labelled = |model: SequenceClassifier| {
        let mut labels = model.labels().iter();
        let label = labels.position(|label| label.eq_ignore_ascii_case("entailment"));
        label.map(|label| (model, label)).ok_or("the model has no label `entailment`")
    };
    let model = model.map(labelled).transpose()?;
    Ok(move |premise: &str, claim: &str| match &model {
        Some((model, label)) => entails(model, *label, premise, claim),
        None => Ok(words_entail(premise, claim, word_share)),
    })
}

/// Whether entailment is the likeliest label.
fn entails(
    model: &SequenceClassifier,
    label: usize,
    premise: &str,
    claim: &str,
) -> Result<bool, String> {
    let logits = model.logits([(premise, claim).into()])?;
    let logits = logits.first().map(Vec::as_slice).unwrap_or_default();
    let own = logits.get(label).ok_or("no logit for `entailment`")?;
    Ok(logits.iter().all(|other| other <= own))
}

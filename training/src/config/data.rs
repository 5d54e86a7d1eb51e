//! The data of a run.

use std::{fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer, value::SeqAccessDeserializer,
    },
};

use crate::data::rows::OnMalformed;

/// One data set, `[data]`, or several types of task, `[[data]]`, whose rows are drawn together.
#[derive(Debug, Clone)]
pub struct DataSets(Vec<DataConfig>);

impl DataSets {
    /// The data sets, with the keys that name them in errors.
    pub fn iter(&self) -> impl Iterator<Item = (String, &DataConfig)> {
        let several = self.several();
        let key = move |index| if several { format!("data[{index}]") } else { "data".to_owned() };
        self.0.iter().enumerate().map(move |(index, set)| (key(index), set))
    }

    /// Whether there is more than one.
    pub fn several(&self) -> bool {
        self.0.len() > 1
    }

    /// The longest prompt of any, in tokens.
    pub fn max_prompt_tokens(&self) -> usize {
        self.0.iter().map(|set| set.max_prompt_tokens).max().unwrap_or(0)
    }
}

impl Serialize for DataSets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for DataSets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = DataSets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one data set, [data], or several, [[data]]")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataSets, A::Error> {
                let one = DataConfig::deserialize(MapAccessDeserializer::new(map))?;
                Ok(DataSets(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<DataSets, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(items)).map(DataSets)
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// Prompts and references. Paths, as those of rewards, are relative to the data directory of the
/// command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Name of the type of task, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Objectives whose rewards judge the answers to these rows (left out: all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Vec<String>>,
    /// Format of the files.
    pub format: DataFormat,
    /// Training rows.
    pub train: PathBuf,
    /// Rows for choosing β and α, and for the validation loss.
    #[serde(default)]
    pub validation: Option<PathBuf>,
    /// Rows for `evaluate` alone.
    #[serde(default)]
    pub test: Option<PathBuf>,
    /// Instead of `validation` and `test`: shares of the rows of `train` that train, validate and
    /// test, by seed and row id.
    #[serde(default)]
    pub split: Option<[f64; 3]>,
    /// minijinja template around the user's last turn (`prompt`, `fields`, `id`), or the whole
    /// prompt from a row's columns for format `jsonl`.
    #[serde(default)]
    pub template: Option<String>,
    /// Column of the reference answers, for format `jsonl`.
    #[serde(default)]
    pub reference: Option<String>,
    /// Column of the id, for format `jsonl`.
    #[serde(default)]
    pub id: Option<String>,
    /// What to do with malformed rows: `fail` refuses the file and names them all, `skip` leaves
    /// them out with a warning for each.
    #[serde(default)]
    pub malformed: OnMalformed,
    /// Documents put into a prompt, for format `alce` (5: ALCE's vanilla setting).
    #[serde(default = "DataConfig::documents")]
    pub documents: usize,
    /// Longest prompt in tokens; rows with a longer one are left out, and counted in the log.
    #[serde(default = "DataConfig::max_prompt_tokens")]
    pub max_prompt_tokens: usize,
}

impl DataConfig {
    pub(super) fn documents() -> usize {
        5
    }

    fn max_prompt_tokens() -> usize {
        512
    }
}

/// Formats that have a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// SciTLDR-A JSONL.
    Scitldr,
    /// QA-Feedback JSONL.
    QaFeedback,
    /// hh-rlhf dialogue pairs.
    HhRlhf,
    /// TL;DR posts.
    Tldr,
    /// ALCE JSON.
    Alce,
    /// ECInstruct records.
    Ecinstruct,
    /// Shopping MMLU's retrieval, ranking, named-entity and generation tasks.
    ShoppingMmlu,
    /// Shopping MMLU's multiple choice.
    ShoppingMmluChoices,
    /// Any JSONL with `template`.
    Jsonl,
}

impl DataFormat {
    /// How to get the data set.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Scitldr => {
                "SciTLDR-A: `git clone https://github.com/allenai/scitldr`, whose \
                 SciTLDR-Data/SciTLDR-A is the directory of train.jsonl, dev.jsonl and test.jsonl"
            }
            Self::QaFeedback => {
                "QA-Feedback: `git clone https://github.com/allenai/FineGrainedRLHF`, \
                 tasks/qa_feedback/data"
            }
            Self::HhRlhf => "hh-rlhf: `git clone https://github.com/anthropics/hh-rlhf`",
            Self::Tldr => "TL;DR: `git clone https://github.com/openai/summarize-from-feedback`",
            Self::Alce => {
                "ALCE: `git clone https://github.com/princeton-nlp/ALCE`, download_data.sh"
            }
            Self::Ecinstruct => "ECInstruct: `git clone https://github.com/ninglab/eCeLLM`",
            Self::ShoppingMmlu | Self::ShoppingMmluChoices => {
                "Shopping MMLU: `git clone https://github.com/KL4805/ShoppingMMLU`"
            }
            Self::Jsonl => "a JSONL file of your own",
        }
    }
}

"""Reference values for training/src/rewards: overlap and ranking metrics by rouge-score, sacrebleu, NLTK
and scikit-learn; tiny random reward models by transformers.

    python tests/reference/training_rewards.py tests/fixtures/training

writes rewards.json and models/NAME/ (config.json, model.safetensors, tokenizer.json). With a second
argument, the directory of all-MiniLM-L6-v2, also minilm.json, its cosines on the same texts.
"""

import json
import pathlib
import random
import sys

import nltk
import numpy
import rouge_score
import sacrebleu
import sklearn
import tokenizers
import torch
import transformers
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sklearn.metrics import f1_score, ndcg_score, roc_auc_score
from sklearn.preprocessing import MultiLabelBinarizer

SEED = 20261121
TEXTS = [
    "We introduce a loss-scaling method that makes mixed precision training easier.",
    "We propose adaptive loss scaling to improve mixed-precision training, beyond the state of the art!",
    "The model isn't trained; it's only merged (see Fig. 3), at 1,000.5 tokens/s -- 2-3x faster.",
    "Generously agreed relational conditioning: happiness, flies, dying, skies, and controlled hopping.",
    "“Curly quotes”, naïve café façades & 10% of x<y; a_b_c [1][2] {braces} ~tilde~ `code`",
    "the the the the the",
    "A",
    "",
    "Short answer.",
    "In 1998, U.S. researchers (at M.I.T.) found 3.14 and 2,718 to be numbers. Did they? Yes!",
    "Deep networks generalise well although they're over-parameterised;\nwe ask why, and answer in part.",
    "Networks generalize well. We ask why and answer in part: optimisation is biased towards simple functions.",
]
WORDS = """caresses ponies ties caress cats feed agreed plastered bled motoring sing conflated troubled sized hopping
tanned falling hissing fizzed failing filing happy sky enjoy spy relational conditional rational valenci hesitanci
digitizer conformabli radicalli differentli vileli analogousli vietnamization predication operator feudalism
decisiveness hopefulness callousness formaliti sensitiviti sensibiliti triplicate formative formalize electriciti
electrical hopeful goodness revival allowance inference airliner gyroscopic adjustable defensible irritant replacement
adjustment dependent adoption homologou communism activate angulariti homologous effective bowdlerize probate rate
cease controll roll news innings proceed geology theology archaeology carefully died lied flying tried cried yes
saying say eyes oxen ion nation as is be on generalization optimally analytically syzygy toys boy annoyingly""".split()


def overlap():
    pairs = []
    scorers = {stem: rouge_scorer.RougeScorer(["rougeL"], use_stemmer=stem) for stem in (False, True)}
    bleu = {lower: BLEU(effective_order=True, lowercase=lower) for lower in (False, True)}
    for i, candidate in enumerate(TEXTS):
        for j in range(len(TEXTS)):
            references = [TEXTS[j], TEXTS[(i + j + 3) % len(TEXTS)]]
            pairs.append(
                {
                    "candidate": candidate,
                    "references": references,
                    "rouge_l": scorers[False].score(references[0], candidate)["rougeL"].fmeasure,
                    "rouge_l_stem": scorers[True].score(references[0], candidate)["rougeL"].fmeasure,
                    "bleu_4": bleu[False].sentence_score(candidate, references).score / 100,
                    "bleu_4_lower": bleu[True].sentence_score(candidate, references).score / 100,
                }
            )
    return pairs


def ranking(generator):
    cases = []
    for _ in range(40):
        m = generator.randint(2, 8)
        grades = [generator.choice([0, 0, 0.5, 1, 2, 3]) for _ in range(m)]
        given = generator.sample(range(1, m + 1), generator.randint(0, m))
        score = [m + 1 - given.index(i) if i in given else 0 for i in range(1, m + 1)]
        exact = {}
        for name, gains in (("linear", grades), ("exponential", [2**g - 1 for g in grades])):
            exact[name] = ndcg_score([gains], [score]) if any(gains) else 0.0
        cases.append({"ranking": given, "grades": grades, **exact})
    return cases


def labels(generator):
    names = ["red", "green", "blue", "big", "small"]
    truth, given = [], []
    for _ in range(12):
        truth.append(generator.sample(names, generator.randint(1, 4)))
        given.append(generator.sample(names, generator.randint(0, 4)))
    binary = MultiLabelBinarizer(classes=names).fit([names])
    t, g = binary.transform(truth), binary.transform(given)
    return {
        "truth": truth,
        "given": given,
        "micro_f1": f1_score(t, g, average="micro", zero_division=0),
        "each": f1_score(t, g, average="samples", zero_division=0),
    }


def auc(generator):
    cases = []
    for _ in range(10):
        positive = [True, False] + [generator.random() < 0.3 for _ in range(generator.randint(0, 30))]
        scores = [round(generator.gauss(0.5 * p, 1), 1) for p in positive]
        cases.append({"positive": positive, "scores": scores, "auc": roc_auc_score(positive, scores)})
    return cases


def word_tokenizer(special, roles):
    """A word-level tokenizer over TEXTS with BERT-like, RoBERTa-like or no special tokens around them."""
    model = tokenizers.models.WordLevel(unk_token=roles["unk"])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special, vocab_size=150)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if roles["first"] is None:
        return tokenizer
    first, last = roles["first"], roles["last"]
    second = 1 if roles["types"] else 0
    middle = [last] if roles["types"] else [last, last]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=" ".join([f"{first}:0 $A:0", *(f"{m}:0" for m in middle), f"$B:{second} {last}:{second}"]),
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (first, last)],
    )
    return tokenizer


BERT = (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], {"unk": "[UNK]", "first": "[CLS]", "last": "[SEP]", "types": True})
ROBERTA = (["<s>", "<pad>", "</s>", "<unk>"], {"unk": "<unk>", "first": "<s>", "last": "</s>", "types": False})
CAUSAL = (["<unk>"], {"unk": "<unk>", "first": None})


def models(out):
    common = {"vocab_size": 150, "max_position_embeddings": 64, "num_labels": 3}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    deberta = {
        **sizes,
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
    }
    roberta = {**common, **sizes, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    # Texts end with full stops: as the padding token, it makes the last token another one.
    stop = word_tokenizer(*CAUSAL).token_to_id(".")
    causal = {**common, "pad_token_id": stop, "bos_token_id": None, "eos_token_id": None}
    gpt2 = {**causal, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    llama = {
        **causal,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    t = transformers
    table = {
        "bert": (t.BertForSequenceClassification, t.BertConfig(**common, **sizes), BERT),
        "bert-tokens": (t.BertForTokenClassification, t.BertConfig(**common, **sizes), BERT),
        "bert-encoder": (t.BertModel, t.BertConfig(**common, **sizes), BERT),
        "distilbert": (t.DistilBertForSequenceClassification, t.DistilBertConfig(**common, **distil), BERT),
        "roberta": (t.RobertaForSequenceClassification, t.RobertaConfig(**roberta), ROBERTA),
        "deberta-v2": (t.DebertaV2ForSequenceClassification, t.DebertaV2Config(**common, **deberta), BERT),
        "deberta-v2-tokens": (t.DebertaV2ForTokenClassification, t.DebertaV2Config(**common, **deberta), BERT),
        "gpt2": (t.GPT2ForSequenceClassification, t.GPT2Config(**gpt2), CAUSAL),
        "gpt2-tokens": (t.GPT2ForTokenClassification, t.GPT2Config(**gpt2), CAUSAL),
        "llama": (t.LlamaForSequenceClassification, t.LlamaConfig(**llama), CAUSAL),
        "llama-tokens": (t.LlamaForTokenClassification, t.LlamaConfig(**llama), CAUSAL),
        "qwen3": (t.Qwen3ForSequenceClassification, t.Qwen3Config(**llama), CAUSAL),
    }
    results = {}
    texts = [x for x in TEXTS if x]
    pairs = [(a, b) for a, b in zip(texts, texts[1:] + texts[:1])]
    for name, (kind, config, (special, roles)) in table.items():
        torch.manual_seed(SEED)
        model = kind(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * 0.25 + (1.0 if p.dim() == 1 and p.mean() > 0.5 else 0.0))
        model.save_pretrained(out / name)
        tokenizer = word_tokenizer(special, roles)
        tokenizer.save(str(out / name / "tokenizer.json"))
        (out / name / "generation_config.json").unlink(missing_ok=True)
        rows = []
        for pair in pairs:
            encoded = tokenizer.encode(*pair)
            inputs = {"input_ids": torch.tensor([encoded.ids]), "attention_mask": torch.ones(1, len(encoded.ids))}
            if name.startswith("bert"):
                inputs["token_type_ids"] = torch.tensor([encoded.type_ids])
            with torch.no_grad():
                if name == "bert-encoder":
                    rows.append(mean_pooled(model, tokenizer, pair))
                else:
                    logits = model(**inputs).logits[0]
                    if name.endswith("-tokens"):
                        keep = [
                            i
                            for i, (s, o) in enumerate(zip(encoded.sequence_ids, encoded.offsets))
                            if s == 1 and o[0] < o[1]
                        ]
                        logits = logits[keep]
                    rows.append(logits.double().tolist())
        results[name] = rows
    return {"pairs": pairs, "models": results}


def mean_pooled(model, tokenizer, pair):
    """Cosine of the two texts' mean-pooled states."""
    vectors = []
    for text in pair:
        encoded = tokenizer.encode(text)
        ids = torch.tensor([encoded.ids])
        with torch.no_grad():
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(states.mean(0), dim=0))
    return float(vectors[0] @ vectors[1])


def minilm(directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    texts = [x for x in TEXTS if x]
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
    return {"texts": texts, "cosines": (vectors @ vectors.T).double().tolist()}


def main():
    torch.set_num_threads(1)
    out = pathlib.Path(sys.argv[1])
    generator = random.Random(SEED)
    stemmer = PorterStemmer()
    words = sorted({w for text in TEXTS for w in text.lower().split() if w.isascii() and w.isalnum()} | set(WORDS))
    result = {
        "versions": {
            "nltk": nltk.__version__,
            "numpy": numpy.__version__,
            "rouge_score": getattr(rouge_score, "__version__", "0.1.2"),
            "sacrebleu": sacrebleu.__version__,
            "scikit-learn": sklearn.__version__,
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seed": SEED,
        "stems": {w: stemmer.stem(w) for w in words},
        "tokens_13a": [{"text": x, "tokens": Tokenizer13a()(x.rstrip()).split()} for x in TEXTS],
        "overlap": overlap(),
        "ranking": ranking(generator),
        "labels": labels(generator),
        "auc": auc(generator),
        "classifiers": models(out / "models"),
    }
    (out / "rewards.json").write_text(json.dumps(result))
    if len(sys.argv) > 2:
        (out / "minilm.json").write_text(json.dumps(minilm(sys.argv[2])))


if __name__ == "__main__":
    main()

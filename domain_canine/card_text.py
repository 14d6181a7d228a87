"""The words of the model card."""

HEAD = """
# {title}

A character-level model of domain names: [CANINE](https://arxiv.org/abs/2103.06874), {made}.
No tokenizer is learned: the input is Unicode code points.
"""

EMBED = """
## Quick start

`pip install torch transformers`. The model's own code comes with it (`trust_remote_code=True`).

A vector for each name, the mean of its characters' last hidden states:

```python
import torch
from transformers import AutoModel, AutoTokenizer

name = "{model}"
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
encoder = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
batch = tokenizer(["example.com", "ein-beispiel.de"], padding=True, return_tensors="pt")
with torch.no_grad():
    states = encoder(**batch).last_hidden_state
mask = batch["attention_mask"][:, 2:, None]  # of the characters between [CLS] and [SEP]
vectors = (states[:, 1:-1] * mask).sum(1) / mask.sum(1)
print(vectors.shape)
```

`AutoModel` loads the encoder without remote code, too, as stock CANINE, whose outputs change with the padding. The
pooler is not trained: take the mean, as above.
"""

USE = (
    EMBED.replace(
        "A vector for each name",
        """It predicts masked characters, and so knows which follow which in names, which words people register, and
which suffix goes with what. Missing characters, how likely a name is, and names for a pattern:

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="{model}", trust_remote_code=True)
print(fill("exam[MASK]le.com", top_k=3))

score = pipeline("domain-score", model="{model}", trust_remote_code=True)
print(score("example.com")["bits_per_character"], score("xkqzvw.com")["bits_per_character"])

complete = pipeline("domain-complete", model="{model}", trust_remote_code=True)
print(complete("py????.com", count=3))
```

A vector for each name""",
    )
    + """
## Intended use

- Suggesting names, and completing patterns with unknown characters (`domain-complete`, `fill-mask`).
- Ranking names by how much they look like registered ones (`domain-score`): the fewer bits per character, the likelier.
- A start for classifiers of names, and features for other models; fine-tune it for a task of your own.

Names go in as they are registered: lower-case ASCII, Unicode names in their `xn--` form.
"""
)

OTHER_USE = """
## Quick start

`pip install torch transformers`. The model's own code comes with it (`trust_remote_code=True`).

```python
from transformers import pipeline

model = pipeline("{task}", model="{model}", trust_remote_code=True)
print(model(["example.com", "beispiel.de"]))
```

Names go in as they are registered: lower-case ASCII, Unicode names in their `xn--` form.
"""

LIMITS = """
## Limits
{trial}
- A likely name is not a good, free or harmless one: the model knows spelling, and neither trade marks nor registries.
  Its completions may be registered, and may be offensive, as registered names are.
- Scores of an `mlm` model are pseudo-log-likelihoods: they rank names, and are no probabilities. They compare with
  those of the same model alone.
- An unlikely name is not a malicious one, nor a likely one safe: security decisions need more than this score.
- It has seen names of the time and the registries of its data; later fashions, rare suffixes and scripts are strange
  to it.
"""

LABEL_LIMITS = """
## Limits

- It sees the name alone: neither its age, its owner nor what it leads to. A decision that matters needs more than that.
- It is as good as its labels, for names like those it was trained on; others, of later years or rare suffixes, are
  strange to it. Where positives are rarer than in its data, more of what it takes for one is none.
"""

SYNTHETIC = """
- **It was trained on synthetic names**, to try the software out. It knows nothing of real ones."""

LITTLE_DATA = """
- **It was trained on few names**, under a million: fit for a trial, too few to learn the language of names."""

CITATION = """
## Citation

```bibtex
@article{clark2022canine,
  title   = {{CANINE}: Pre-training an Efficient Tokenization-Free Encoder for Language Representation},
  author  = {Clark, Jonathan H. and Garrette, Dan and Turc, Iulia and Wieting, John},
  journal = {Transactions of the Association for Computational Linguistics},
  volume  = {10},
  pages   = {73--91},
  year    = {2022}
}
```
"""

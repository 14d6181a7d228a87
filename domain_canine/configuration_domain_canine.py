"""The configuration of a CANINE encoder with a head over code points."""

from transformers.models.canine.configuration_canine import CanineConfig


class DomainCanineConfig(CanineConfig):
    """A ``CanineConfig`` with what the masked language model adds.

    ``model_type`` stays ``canine``: stock ``AutoModel`` loads the encoder of our checkpoints without remote code.

    Args:
        vocab_size: classes of the head; class ``j`` is code point ``j``, so 128 covers every ASCII name.
        mask_code_point: stands for a masked character. U+E003 is CANINE's own [MASK], the one that
            ``google/canine-c`` was pretrained with.
        objective: ``mlm`` or ``any_order``, how it was trained: names are scored accordingly.
        pooling: ``cls`` or ``mean``, what a classifier stands on.
        label_mean, label_std: of the numbers that a regression was trained on; its outputs are in their units.
    """

    vocab_size: int = 128
    mask_code_point: int = 0xE003
    objective: str = "mlm"
    pooling: str = "cls"
    label_mean: float = 0.0
    label_std: float = 1.0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        # A stock checkpoint names U+E000 and U+E001 here. Nothing reads them, and transformers warns at every start
        # of special tokens that are no class of the head.
        self.bos_token_id = self.eos_token_id = None
        super().__post_init__(**kwargs)


# Written into config.json, so that a checkpoint loads with the remote code that lies beside it.
AUTO_MAP = {
    "AutoConfig": "configuration_domain_canine.DomainCanineConfig",
    "AutoModel": "modeling_domain_canine.DomainCanineModel",
    "AutoModelForMaskedLM": "modeling_domain_canine.DomainCanineForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_domain_canine.DomainCanineForSequenceClassification",
}
PIPELINES = {
    "domain-score": {"impl": "pipeline_domain_canine.DomainScorePipeline", "pt": ["AutoModelForMaskedLM"]},
    "domain-complete": {"impl": "pipeline_domain_canine.DomainCompletePipeline", "pt": ["AutoModelForMaskedLM"]},
    "domain-embed": {"impl": "pipeline_domain_canine.DomainEmbedPipeline", "pt": ["AutoModelForMaskedLM"]},
}

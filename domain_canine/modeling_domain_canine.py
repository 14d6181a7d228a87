"""CANINE as a masked language model and classifier of domain names (Clark et al. 2022, arXiv:2103.06874).

The weights are those of ``transformers.CanineModel``, by name and shape. What differs is the forward pass:

* Outputs do not depend on padding. A character sees two characters to its right through the up-sampling
  convolution, so every row is given ``4 * ceil((L + 2) / 4)`` slots here, and no molecule is dropped; stock CANINE
  drops the last one and repeats the one before it, which moves with the padding.
* The final layer's queries, its feed-forward and the head run at the masked positions only, as in Google's own code.
* Attention is PyTorch's scaled_dot_product_attention, or eager where the attention weights are asked for.

Shapes: B names, L code points with [CLS] and [SEP], S slots (L padded as above), M = S / 4 molecules, K masked
positions, D width, H heads, V classes.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.canine.modeling_canine import CanineModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_domain_canine import DomainCanineConfig
from .layers_domain_canine import DomainCanineEmbeddings, DomainCanineEncoder, never_empty, normalized
from .molecules_domain_canine import CharactersToMolecules, MoleculesToCharacters

IGNORED = -100  # a label that is no target, PyTorch's ignore_index


class DomainCaninePreTrainedModel(PreTrainedModel):
    config_class = DomainCanineConfig
    base_model_prefix = "canine"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DomainCanineLayer"]
    _input_embed_layer = "char_embeddings"  # where gradient checkpointing hooks in

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """It is read at each call; transformers guesses otherwise from the source of this file."""
        return True


class DomainCanineModel(DomainCaninePreTrainedModel):
    """The CANINE encoder; parameter names and shapes are those of ``transformers.CanineModel``."""

    def __init__(self, config: DomainCanineConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.char_embeddings = DomainCanineEmbeddings(config)
        self.initial_char_encoder = DomainCanineEncoder(config, 1, window=config.local_transformer_stride)
        self.chars_to_molecules = CharactersToMolecules(config)
        self.encoder = DomainCanineEncoder(config, config.num_hidden_layers)
        self.projection = MoleculesToCharacters(config)
        self.final_char_encoder = DomainCanineEncoder(config, 1)
        dense = {"dense": nn.Linear(config.hidden_size, config.hidden_size)}
        self.pooler = nn.ModuleDict(dense) if add_pooling_layer else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        ascii_only: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        pooled_only: bool = False,
    ) -> tuple | CanineModelOutputWithPooling:
        """Encode names.

        Args:
            input_ids: (B, L) code points; or ``inputs_embeds`` (B, L, D), hash embeddings.
            attention_mask: (B, L), 1 where real; by default where ``input_ids`` is not 0.
            masked_positions: (B, K); the last layer then runs at these positions only.
            ascii_only: promises that ``input_ids`` are ASCII or U+E000 to U+E007; the same result, sooner.
            pooled_only: leave out what ``pooler_output`` does not need, which is the way back up to characters.

        Returns:
            ``last_hidden_state`` (B, L, D), or (B, K, D) with ``masked_positions``, and ``pooler_output`` (B, D).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        length = given.shape[1]
        rate = self.config.downsampling_rate
        right = self.projection.padding[1]  # how far a character sees to its right: 2
        slots = rate * ((length + right + rate - 1) // rate)
        if attention_mask is None:
            attention_mask = given.new_ones(given.shape[:2]) if input_ids is None else input_ids != 0
        # A row of padding alone attends to it: a softmax over nothing is NaN.
        mask = never_empty(F.pad(attention_mask != 0, (0, slots - length)))
        if inputs_embeds is None:
            ids = F.pad(input_ids, (0, slots - length))
        else:
            ids = mask.new_zeros(mask.shape[0], slots - length, dtype=torch.long)
        types = None if token_type_ids is None else F.pad(token_type_ids, (0, slots - length))
        positions = position_ids
        if positions is not None:
            added = torch.arange(length, slots, device=mask.device).expand(len(positions), -1)
            positions = torch.cat([positions, added], dim=1)

        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions and self.config._attn_implementation != "eager":
            raise ValueError("output_attentions needs the eager attention: model.set_attn_implementation('eager')")
        trace = {"hidden_states": (), "attentions": ()} if output_attentions or output_hidden_states else None
        characters = self.char_embeddings(ids, types, positions, inputs_embeds, ascii_only)
        characters = self.initial_char_encoder(characters, mask, trace)
        # Molecule k is attended to if any of the characters 4k .. 4k + 3 is real; [CLS] stands at 0, so that the last
        # one, which stock CANINE drops, never is: it only carries characters back up.
        molecule_mask = F.pad(mask.unflatten(1, (-1, rate)).any(-1), (0, 1))
        whole = self.pooler is not None or trace is not None
        needed = slice(0, 1) if pooled_only else slice(1, None)  # [CLS] is for the pooler alone
        molecules = self.encoder(
            self.chars_to_molecules(characters), molecule_mask, trace,
            None if whole and not pooled_only else lambda states: states[:, needed],
        )  # fmt: skip
        pooled = None if self.pooler is None else torch.tanh(self.pooler["dense"](molecules[:, 0]))
        if pooled_only:
            return CanineModelOutputWithPooling(pooler_output=pooled)
        molecules = molecules[:, 1:] if whole else molecules
        states = self.projection(characters, molecules)
        if masked_positions is None:
            states = self.final_char_encoder(states, mask, trace)[:, :length]
        else:
            at = masked_positions[..., None].expand(-1, -1, states.shape[-1])
            states = self.final_char_encoder(states, mask, trace, lambda states: states.gather(1, at))

        hidden = None
        if output_hidden_states:
            # Of the slots that were added nobody asked; molecules stay as they are.
            hidden = tuple(each[:, :length] if each.shape[1] == slots else each for each in trace["hidden_states"])
            hidden = (*hidden[:-1], states)
        return CanineModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=pooled,
            hidden_states=hidden,
            attentions=trace["attentions"] if output_attentions else None,
        )


class DomainCanineLMHead(nn.Module):
    """Linear D -> D, GELU, LayerNorm, Linear D -> V."""

    def __init__(self, config: DomainCanineConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, states):
        return self.decoder(normalized(self.layer_norm, self.activation(self.dense(states))))


class DomainCanineForMaskedLM(DomainCaninePreTrainedModel):
    """Predicts the masked characters of a name; ``logits[..., j]`` is the score of code point ``j``."""

    # The Trainer then hands num_items_in_batch to forward, and divides by nothing itself.
    accepts_loss_kwargs = True

    def __init__(self, config: DomainCanineConfig):
        super().__init__(config)
        self.canine = DomainCanineModel(config, add_pooling_layer=False)
        self.lm_head = DomainCanineLMHead(config)
        self.post_init()

    def score(self, names: list[str], **options) -> list:
        """``NameScore`` of normalised names; options are those of ``score_names``."""
        # transformers saves the files that a model's own file imports, the pipelines' with them.
        from .pipeline_domain_canine import score_names

        return score_names(self, names, **options)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ascii_only: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple | MaskedLMOutput:
        """Score masked characters.

        Args:
            masked_positions: (B, K) positions to score; all L without it.
            labels: (B, K), or (B, L) without ``masked_positions``: the true code points, -100 where there is none.
            loss_weights: (B,) weight of each name's characters in the loss; 1 by default.
            num_items_in_batch: what the summed nats are divided by; the summed weights of the targets by default.
            ascii_only: as of ``DomainCanineModel``.

        Returns:
            ``loss`` in nats per masked character, and ``logits`` (B, K, V) or (B, L, V).
        """
        outputs = self.canine(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, masked_positions, ascii_only,
            output_attentions, output_hidden_states,
        )  # fmt: skip
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            rows = logits.float().flatten(0, 1)
            nats = F.cross_entropy(rows, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels)
            weights = (labels != IGNORED).to(nats.dtype)
            if loss_weights is not None:
                weights = weights * loss_weights[:, None]
            items = weights.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = (nats * weights).sum() / items
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DomainCanineForSequenceClassification(DomainCaninePreTrainedModel):
    """A linear classifier (or regression, ``num_labels=1``) on a name's state: ``config.pooling`` says which.

    ``cls``: the pooled [CLS] molecule, as stock CANINE's. ``mean``: the mean of the characters' final states.
    """

    accepts_loss_kwargs = True

    def __init__(self, config: DomainCanineConfig):
        super().__init__(config)
        self.canine = DomainCanineModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ascii_only: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple | SequenceClassifierOutput:
        """Classify names.

        Args:
            labels: (B,) class indices; (B,) or (B, num_labels) floats for regression or several labels a name.
            loss_weights: (B,) of each name in the loss; 1 by default.
            num_items_in_batch: what the weighted sum is divided by; the sum of the weights by default.
            ascii_only: as of ``DomainCanineModel``.

        Returns:
            ``loss`` in nats a name (regression: squared error over the labels' variance), ``logits`` (B, num_labels).
        """
        mean = self.config.pooling == "mean"
        outputs = self.canine(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, ascii_only=ascii_only,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            pooled_only=not (mean or output_attentions or output_hidden_states),
        )  # fmt: skip
        pooled = outputs.pooler_output
        if mean:
            given = attention_mask
            if given is None:
                given = input_ids != 0 if inputs_embeds is None else inputs_embeds.new_ones(inputs_embeds.shape[:2])
            pooled = mean_of_characters(outputs.last_hidden_state, given)
        logits = self.classifier(self.dropout(pooled))
        if self.config.problem_type == "regression":
            logits = logits.float() * self.config.label_std + self.config.label_mean
        loss = None
        if labels is not None:
            each = self._losses(logits, labels)
            weights = torch.ones_like(each) if loss_weights is None else loss_weights.to(each.dtype)
            if self.config.problem_type == "single_label_classification":
                weights = weights * (labels.reshape(-1) != IGNORED)
            items = weights.sum() if num_items_in_batch is None else num_items_in_batch
            loss = (each * weights).sum() / items
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _losses(self, logits, labels):
        """Of each name (B,)."""
        problem, logits = self.config.problem_type, logits.float()
        if problem is None:
            whole = not labels.is_floating_point()
            several = "single_label_classification" if whole else "multi_label_classification"
            problem = "regression" if self.config.num_labels == 1 else several
            self.config.problem_type = problem  # as stock heads; pipelines tell by it what outputs are
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.reshape(-1), reduction="none")
        labels = labels.float().view_as(logits)
        if problem == "regression":
            return F.mse_loss(logits, labels, reduction="none").mean(-1) / self.config.label_std**2
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)


def mean_of_characters(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """States (B, L, D) of names in [CLS] .. [SEP] -> the mean over their characters (B, D).

    [CLS] and [SEP] are left out: masked language modelling trains neither's state. [SEP] is the last real position.
    """
    inside = (attention_mask[:, 2:, None] != 0).to(states.dtype)  # a character stands wherever something follows
    return (states[:, 1:-1] * inside).sum(1) / inside.sum(1).clamp(min=1)

"""The building blocks of CANINE, with the parameter names and shapes of ``transformers.CanineModel``.

Shapes as in ``modeling_domain_canine``: B names, S slots, M = S / 4 molecules, K masked positions, D width, H heads;
N keys and Q queries of an attention.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_domain_canine import DomainCanineConfig
from .kernels_domain_canine import is_plain, is_watched, kernels, precision

# The multipliers of CANINE's hash functions; a fixed part of every checkpoint (upstream: modeling.py).
HASH_PRIMES = (31, 43, 59, 61, 73, 97, 103, 113, 137, 149, 157, 173, 181, 193, 211, 223)
# The code points of most batches: ASCII, and CANINE's special ones from U+E000 on (upstream: special_codepoints.py).
ASCII, SPECIAL, SPECIAL_END = 128, 0xE000, 0xE008


class DomainCanineEmbeddings(nn.Module):
    """Hash, position and token type embeddings of code points."""

    def __init__(self, config: DomainCanineConfig):
        super().__init__()
        self.primes = HASH_PRIMES[: config.num_hash_functions]
        self.buckets = config.num_hash_buckets
        shard = config.hidden_size // config.num_hash_functions
        for i in range(config.num_hash_functions):
            self.add_module(f"HashBucketCodepointEmbedder_{i}", nn.Embedding(self.buckets, shard))
        # As many positions as hash buckets: the upstream port sizes the table so, and checkpoints carry it.
        self.char_position_embeddings = nn.Embedding(self.buckets, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def code_points(self, input_ids: torch.Tensor, ascii_only: bool = False) -> torch.Tensor:
        """(B, S) code points -> (B, S, D) hash embeddings, without position.

        With ``ascii_only`` there are none but ASCII and U+E000 to U+E007: those 136 are hashed, and looked up once for
        each slot, instead of every slot by every hash function.
        """
        if ascii_only:
            return F.embedding(row_of(input_ids), self.code_points(known(input_ids.device)))
        shards = [
            getattr(self, f"HashBucketCodepointEmbedder_{i}")((input_ids + 1) * prime % self.buckets)
            for i, prime in enumerate(self.primes)
        ]
        return torch.cat(shards, dim=-1)

    def forward(self, input_ids, token_type_ids=None, position_ids=None, inputs_embeds=None, ascii_only=False):
        """Code points (B, S); token types and positions (B, S), 0 and 0 .. S - 1 by default -> (B, S, D).

        All look-ups are made here: FSDP brings a module's weights together for its ``forward`` alone.

        Args:
            inputs_embeds: (B, L, D) hash embeddings that stand before the code points, then (B, S - L).
        """
        given = position_ids is not None or token_type_ids is not None or inputs_embeds is not None
        if ascii_only and not given and kernels(self.token_type_embeddings.weight):
            return self.dropout(normalized(self.LayerNorm, self._by_a_product(input_ids)))
        embeddings = self.code_points(input_ids, ascii_only)
        if inputs_embeds is not None:
            embeddings = torch.cat([inputs_embeds, embeddings], dim=1)
        # Slices, not look-ups: their gradient is a sum over the batch.
        if position_ids is None:
            positions = self.char_position_embeddings.weight[: embeddings.shape[1]]
        else:
            positions = self.char_position_embeddings(position_ids)
        if token_type_ids is None:
            types = self.token_type_embeddings.weight[0]
        else:
            types = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(embeddings + (positions + types)))

    def _by_a_product(self, input_ids):
        """Sums of ASCII and positions (B, S, D), in the precision of products: two ones a slot, times a table of both.

        On CUDA the gradient of a look-up is sorted, by 70 kernels; that of a product is a product.
        """
        positions = self.char_position_embeddings.weight[: input_ids.shape[1]] + self.token_type_embeddings.weight[0]
        letters = self.code_points(known(input_ids.device))
        place = len(letters) + torch.arange(len(positions), device=letters.device)
        table = torch.cat([letters, positions])
        table = F.pad(table, (0, 0, 0, -len(table) % 8)).to(precision(table))  # its columns begin at 16 bytes
        ones = torch.zeros(*input_ids.shape, len(table), dtype=table.dtype, device=table.device)
        return ones.scatter_(-1, torch.stack([row_of(input_ids), place.expand_as(input_ids)], -1), 1.0) @ table


def known(device: torch.device) -> torch.Tensor:
    """The code points of batches that are ASCII."""
    return torch.cat([torch.arange(ASCII, device=device), torch.arange(SPECIAL, SPECIAL_END, device=device)])


def row_of(code_points: torch.Tensor) -> torch.Tensor:
    """Where they are among those: row 128 + i for U+E000 + i, whose 16th bit is 1."""
    return (code_points & ASCII - 1) + (code_points >> 15) * ASCII


class DomainCanineSelfAttention(nn.Module):
    def __init__(self, config: DomainCanineConfig):
        super().__init__()
        self.config = config
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries, keys, bias):
        """Queries (B, Q, D) attend to keys (B, N, D) with bias (B, 1, 1 or Q, N) -> (B, Q, D), weights or None."""
        eager = self.config._attn_implementation == "eager"
        linears = self.query, self.key, self.value
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        # ONNX Runtime has no 8 bits for products of weights with three dimensions.
        plain = all(map(is_plain, linears)) and not is_exporting()
        if queries.shape[1] == 1 and plain and not (eager or self.training):
            return self._of_one_query(self.query(queries), keys, bias), None
        fused = kernels(keys)
        if fused and plain and not eager and fused.Attention.takes(queries.shape, keys.shape, self.heads):
            query = None if queries is keys else self.query(queries)
            return fused.Attention.apply(query, self._joined(queries, keys), bias, self.heads, dropout), None
        if self.training and plain:
            made = self._joined(queries, keys).unflatten(-1, (-1, self.heads, keys.shape[-1] // self.heads))
            made = made.permute(2, 0, 3, 1, 4).unbind()
            query = self.query(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2) if len(made) == 2 else made[0]
            key, value = made[-2:]
        else:
            query, key, value = (
                linear(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for linear, states in zip(linears, (queries, keys, keys))
            )
        if eager:
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            weights = (scores + bias).softmax(-1)
            context = F.dropout(weights, dropout) @ value
        else:
            weights = None
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return context.transpose(1, 2).flatten(2), weights

    def _joined(self, queries, keys):
        """Keys and values (B, N, 2 D), with the queries before them (B, N, 3 D) if of the same, by one product."""
        linears = [self.query, self.key, self.value] if queries is keys else [self.key, self.value]
        weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        return F.linear(keys, weight, bias)

    def _of_one_query(self, query, states, bias):
        """The same for one query a row (B, 1, D), as scoring has it, without keys and values of all N states.

        Both are linear in the states: so the keys' weights go to the query's side, and the values' to the mean of the
        states. The keys' bias adds the same to all scores. 5% of the operations of a score, and of its time on a CPU.
        """
        query = query.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3)[..., 0, :]  # (H, B, D / H)
        query = query @ self.key.weight.unflatten(0, (self.heads, -1)) * query.shape[-1] ** -0.5  # (H, B, D)
        scores = query.transpose(0, 1) @ states.transpose(1, 2)  # (B, H, N)
        weights = (scores + bias[:, 0]).softmax(-1)
        mean = (weights @ states).transpose(0, 1)  # (H, B, D)
        context = mean @ self.value.weight.unflatten(0, (self.heads, -1)).transpose(1, 2)  # (H, B, D / H)
        return context.transpose(0, 1).flatten(1)[:, None] + self.value.bias


def normalized(norm: nn.LayerNorm, states: torch.Tensor) -> torch.Tensor:
    """The layer normalisation of states (..., D)."""
    fused = kernels(states)
    if fused and is_plain(norm):
        return fused.ResidualNorm.apply(states, None, None, norm.weight, norm.bias, norm.eps, 0.0)
    return norm(states)


def activated(activation: nn.Module, states: torch.Tensor, weight: nn.Parameter, bias: nn.Parameter):
    """The activation of a linear layer of states (..., D), weight (F, D), bias (F,) -> (..., F)."""
    fused = kernels(states)
    if fused and is_plain(activation):
        return fused.BiasGelu.apply(F.linear(states, weight), bias)
    return activation(F.linear(states, weight, bias))


class DomainCanineResidual(nn.Module):
    """A linear layer, dropout, and the normalised sum with what came in (post-norm, as BERT)."""

    def __init__(self, config: DomainCanineConfig, width: int):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states, residual):
        """States (B, Q, width), residual (B, Q, D) -> (B, Q, D)."""
        fused = kernels(states)
        if not (fused and all(map(is_plain, (self.dense, self.dropout, self.LayerNorm)))):
            return self.LayerNorm(self.dropout(self.dense(states)) + residual)
        return fused.ResidualNorm.apply(
            F.linear(states, self.dense.weight), self.dense.bias, residual, self.LayerNorm.weight, self.LayerNorm.bias,
            self.LayerNorm.eps, self.dropout.p if self.dropout.training else 0.0,
        )  # fmt: skip


class DomainCanineLayer(GradientCheckpointingLayer):
    """A Transformer layer; ``window`` cuts the sequence into blocks that attend within themselves."""

    def __init__(self, config: DomainCanineConfig, window: int | None = None):
        super().__init__()
        self.window = window
        self.attention = nn.ModuleDict(
            {"self": DomainCanineSelfAttention(config), "output": DomainCanineResidual(config, config.hidden_size)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.activation = ACT2FN[config.hidden_act]
        self.output = DomainCanineResidual(config, config.intermediate_size)

    def forward(self, states, mask, queries=None):
        """States (B, N, D), queries (B, Q, D) or all states -> (B, Q, D), weights.

        Args:
            mask: (B, N) True where real; of a layer without window the bias (B, 1, 1, N) that is made of it.
        """
        queries = states if queries is None else queries
        if self.window is not None and is_exporting():
            context, weights = self._windows_by_mask(states, mask)
        elif self.window is not None and states.shape[1] > self.window:
            context, weights = self._windows(states, mask)
        else:
            bias = mask if self.window is None else as_bias(mask[:, None, None], states)
            if (fused := kernels(states)) and self._may_be_fused(fused, queries, states):
                return self._fused(fused, queries, states, bias), None
            context, weights = self.attention["self"](queries, states, bias)
        states = self.attention["output"](context, queries)
        return self.output(self._wide(states), states), weights

    def _may_be_fused(self, fused, queries, states):
        attention, first, last = self._parts()
        stock = type(attention) is DomainCanineSelfAttention and type(first) is type(last) is DomainCanineResidual
        if not stock or attention.config._attn_implementation == "eager" or any(map(is_watched, self._parts())):
            return False
        shorter = queries.shape[1] == 1 and not self.training
        plain = all(map(is_plain, (*self._linears(), first.dropout, last.dropout, self.activation)))
        return plain and not shorter and fused.Layer.takes(queries.shape, states.shape, attention.heads)

    def _fused(self, fused, queries, states, bias):
        attention, first, last = self._parts()
        attention_dropout = attention.config.attention_probs_dropout_prob if attention.training else 0.0
        kind = precision(states)  # a layer before that is not fused leaves fp32
        return fused.Layer.apply(
            None if queries is states else queries.to(kind), states.to(kind), bias, attention.heads,
            [each.LayerNorm.eps for each in (first, last)],
            [attention_dropout, *(each.dropout.p if each.dropout.training else 0.0 for each in (first, last))],
            *(parameter for each in self._linears() for parameter in (each.weight, each.bias)),
        )  # fmt: skip

    def _parts(self):
        return self.attention["self"], self.attention["output"], self.output

    def _linears(self):
        """Those and the normalisations, in their order."""
        attention, first, last = self._parts()
        return (
            attention.query, attention.key, attention.value, first.dense, first.LayerNorm, self.intermediate["dense"],
            last.dense, last.LayerNorm,
        )  # fmt: skip

    def _wide(self, states):
        """(B, Q, D) -> (B, Q, F)."""
        dense = self.intermediate["dense"]
        if is_plain(dense):
            return activated(self.activation, states, dense.weight, dense.bias)
        return self.activation(dense(states))

    def _windows(self, states, mask):
        length, width = states.shape[1], self.window
        padding = -length % width
        states = F.pad(states, (0, 0, 0, padding)).unflatten(1, (-1, width)).flatten(0, 1)
        mask = F.pad(mask, (0, padding)).unflatten(1, (-1, width)).flatten(0, 1)
        context, weights = self.attention["self"](states, states, as_bias(never_empty(mask)[:, None, None], states))
        # A window with no real key attends to nothing; stock CANINE averages its padding.
        context = context * mask.any(1)[:, None, None]
        return context.unflatten(0, (-1, (length + padding) // width)).flatten(1, 2)[:, :length], weights

    def _windows_by_mask(self, states, mask):
        """The same for exported graphs, which have one branch for all lengths."""
        window = torch.arange(states.shape[1], device=mask.device) // self.window
        seen = mask[:, None] & (window[:, None] == window)
        context, weights = self.attention["self"](states, states, as_bias(never_empty(seen)[:, None], states))
        return context * seen.any(-1, keepdim=True), weights


def is_exporting() -> bool:
    """Whether torch.export runs; PyTorch before 2.13 says so of torch.compile, too."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def never_empty(mask: torch.Tensor) -> torch.Tensor:
    """Rows with no True become all True: a softmax over nothing is NaN."""
    return mask | ~mask.any(-1, keepdim=True)


def as_bias(mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What is added to the scores of an attention among states: 0 where mask (..., N) is True, -inf where not.

    Made of a mask by scaled_dot_product_attention itself it takes three kernels a layer, and on CUDA two more where the
    rows do not begin at multiples of 8; here once for all layers, in the precision that attention computes in.
    """
    length = mask.shape[-1]
    if states.is_cuda:
        mask = F.pad(mask, (0, -length % 8))
    bias = torch.zeros(mask.shape, dtype=precision(states), device=mask.device).masked_fill(~mask, float("-inf"))
    return bias[..., :length]


class DomainCanineEncoder(nn.Module):
    def __init__(self, config: DomainCanineConfig, layers: int, window: int | None = None):
        super().__init__()
        self.window = window
        self.layer = nn.ModuleList(DomainCanineLayer(config, window) for _ in range(layers))

    def forward(self, states, mask, trace, wanted=None):
        """States (B, N, D), mask (B, N) with no row empty -> (B, N, D), or (B, Q, D) of the states that are ``wanted``.

        Args:
            trace: what each layer saw goes into it, if there is one.
            wanted: picks from the last layer's input (B, N, D) the states (B, Q, D) to go on with; all by default.
        """
        if trace is not None:
            trace["hidden_states"] += (states,)
        if self.window is None:
            mask = as_bias(mask[:, None, None], states)
        if kernels(states):
            states = states.to(precision(states))  # once, and not for each product and each sum
        for layer in self.layer:
            queries = wanted(states) if wanted is not None and layer is self.layer[-1] else None
            states, weights = layer(states, mask, queries)
            if trace is not None:
                trace["hidden_states"] += (states,)
                trace["attentions"] += (weights,)
        return states

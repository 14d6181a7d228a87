"""The building blocks of CANINE, with the parameter names and shapes of ``transformers.CanineModel``.

Shapes as in ``modeling_domain_canine``: B names, S slots, M = S / 4 molecules, K masked positions, D width, H heads;
N keys and Q queries of an attention.
"""

import warnings
from functools import cache
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_domain_canine import DomainCanineConfig

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
            device = input_ids.device
            known = torch.cat([
                torch.arange(ASCII, device=device), torch.arange(SPECIAL, SPECIAL_END, device=device)
            ])  # fmt: skip
            # Row 128 + i for U+E000 + i, whose 16th bit is 1.
            return F.embedding((input_ids & ASCII - 1) + (input_ids >> 15) * ASCII, self.code_points(known))
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


def is_plain(module: nn.Module) -> bool:
    """Whether it is what a kernel stands for: not an adapter, a quantised or pruned layer, or one that is watched."""
    stock = type(module) in (nn.Linear, nn.LayerNorm, nn.Dropout, GELUActivation)
    weight = type(getattr(module, "weight", None)) in (nn.Parameter, torch.Tensor, type(None))
    return stock and weight and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or hasattr(module, "_hf_hook")
    )  # fmt: skip


def kernels(states: torch.Tensor):
    """Fused kernels where they compute: on the current GPU, in bf16 or fp16, not in what is compiled or exported."""
    if not states.is_cuda or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    halves = precision(states) in (torch.bfloat16, torch.float16)
    here = states.device.index == torch.cuda.current_device() and states.numel() > 0
    return _kernels() if halves and here and _takes_kernels(states.device) else None


@cache
def _takes_kernels(device: torch.device) -> bool:
    fused = _kernels()
    if not fused or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    ones = torch.ones(1, 16, device=device, dtype=torch.bfloat16)
    try:
        fused.ResidualNorm.apply(ones, None, None, ones[0], ones[0], 1e-12, 0.0)
    except Exception as error:  # Triton wants a C compiler and Python's headers, which small images lack
        warnings.warn(f"layers run without fused kernels, which Triton cannot build: {error}", stacklevel=2)
        return False
    return True


@cache
def _kernels():
    try:
        from .fused_attention_domain_canine import Attention
        from .fused_domain_canine import BiasGelu, ResidualNorm, WindowProducts
    except ImportError:  # no Triton, which comes with PyTorch for CUDA on Linux
        return None
    return SimpleNamespace(
        Attention=Attention, BiasGelu=BiasGelu, ResidualNorm=ResidualNorm, WindowProducts=WindowProducts
    )


def normalized(norm: nn.LayerNorm, states: torch.Tensor) -> torch.Tensor:
    """The layer normalisation of states (..., D)."""
    fused = kernels(states)
    if fused and is_plain(norm):
        return fused.ResidualNorm.apply(states, None, None, norm.weight, norm.bias, norm.eps, 0.0)
    return norm(states)


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
        if self.window is None:
            context, weights = self.attention["self"](queries, states, mask)
        elif is_exporting():
            context, weights = self._windows_by_mask(states, mask)
        elif states.shape[1] > self.window:
            context, weights = self._windows(states, mask)
        else:
            context, weights = self.attention["self"](queries, states, as_bias(mask[:, None, None], states))
        states = self.attention["output"](context, queries)
        return self.output(self._wide(states), states), weights

    def _wide(self, states):
        """(B, Q, D) -> (B, Q, F)."""
        dense, fused = self.intermediate["dense"], kernels(states)
        if fused and is_plain(dense) and is_plain(self.activation):
            return fused.BiasGelu.apply(F.linear(states, dense.weight), dense.bias)
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


def precision(states: torch.Tensor) -> torch.dtype:
    """What a product of these states is computed in, autocast or not."""
    kind = states.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and states.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return states.dtype


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


class CharactersToMolecules(nn.Module):
    """Four characters become one molecule by a strided convolution; [CLS] goes before them on its own."""

    def __init__(self, config: DomainCanineConfig):
        super().__init__()
        rate = config.downsampling_rate
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, kernel_size=rate, stride=rate)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, characters):
        """(B, S, D) -> (B, M + 1, D). A convolution whose stride is its width is one linear layer, and faster so."""
        weight = self.conv.weight.transpose(1, 2).flatten(1)
        blocks = characters.unflatten(1, (-1, self.conv.kernel_size[0])).flatten(2)
        molecules = self.activation(F.linear(blocks, weight, self.conv.bias))
        return normalized(self.LayerNorm, torch.cat([characters[:, :1], molecules], dim=1))


class MoleculesToCharacters(nn.Module):
    """Projects each character with its molecule, over a window of one to the left and two to the right.

    Upstream a convolution runs over characters and repeated molecules. A window lies in one molecule, but for its ends:
    so the weights of the repetitions are summed first, 7 products of width D a molecule instead of 16, to the same
    result. On a CPU it takes 70% (768 wide) to 93% (256 wide) of the convolution's time.
    """

    def __init__(self, config: DomainCanineConfig):
        super().__init__()
        width = config.upsampling_kernel_size
        self.rate = config.downsampling_rate
        self.conv = nn.Conv1d(2 * config.hidden_size, config.hidden_size, kernel_size=width)
        self.padding = ((width - 1) // 2, width - 1 - (width - 1) // 2)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, characters, molecules):
        """(B, S, D) characters, (B, M, D) molecules -> (B, S, D)."""
        of_characters, of_molecules = self.conv.weight.chunk(2, dim=1)
        if fused := kernels(characters):
            characters = characters.to(precision(characters))  # an adapter's normalisation leaves fp32
            taps = of_characters.permute(2, 1, 0).to(characters.dtype).contiguous()
            states = fused.WindowProducts.apply(characters, taps, self.padding[0])
            states = states + self._repeated(molecules, of_molecules, self.conv.bias)
        else:
            states = F.conv1d(F.pad(characters.transpose(1, 2), self.padding), of_characters, self.conv.bias)
            states = states.transpose(1, 2) + self._repeated(molecules, of_molecules)
        return self.dropout(normalized(self.LayerNorm, self.activation(states)))

    def _repeated(self, molecules, weight, bias=None):
        """The convolution over molecules, repeated: (B, M, D), weight (D, D, width), bias (D,) -> (B, S, D)."""
        taps, total = weight.permute(2, 0, 1).contiguous().unbind(), 0
        for offset in (-1, 0, 1):
            # Of the j-th character of a molecule, the taps that see the molecule before, its own, or the one behind it.
            seen = [
                [tap for t, tap in enumerate(taps) if (j - self.padding[0] + t) // self.rate == offset]
                for j in range(self.rate)
            ]
            reached = [j for j in range(self.rate) if seen[j]]
            # Its own molecule reaches every character.
            added = None if bias is None or offset else bias.repeat(self.rate)
            part = F.linear(molecules, torch.cat([sum(seen[j][1:], seen[j][0]) for j in reached]), added)
            part = part.unflatten(-1, (len(reached), -1))
            part = part[:, 1:] if offset == 1 else part[:, :-1] if offset == -1 else part
            around = (reached[0], self.rate - 1 - reached[-1], max(0, -offset), max(0, offset))
            total = total + F.pad(part, (0, 0, *around))
        return total.flatten(1, 2)

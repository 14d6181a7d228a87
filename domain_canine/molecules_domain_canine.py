"""The ways from characters to molecules and back, with the parameter names and shapes of ``transformers.CanineModel``.

Shapes: B names, S slots, M = S / 4 molecules, D width.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_domain_canine import DomainCanineConfig
from .kernels_domain_canine import is_plain, kernels, precision
from .layers_domain_canine import activated, normalized


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
        molecules = activated(self.activation, blocks, weight, self.conv.bias)
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
            states = self._products(fused, characters, molecules, of_characters, self._summed(of_molecules))
            gelu = fused.BiasGelu.apply if is_plain(self.activation) else lambda *given: self.activation(sum(given))
            states = gelu(states, self.conv.bias)
        else:
            states = F.conv1d(F.pad(characters.transpose(1, 2), self.padding), of_characters, self.conv.bias)
            states = self.activation(states.transpose(1, 2) + self._repeated(molecules, self._summed(of_molecules)))
        return self.dropout(normalized(self.LayerNorm, states))

    def _summed(self, weight):
        """Weights of molecules (D, D, width) -> for the molecule before, a character's own, and the one behind it, the
        first of the characters that it reaches, and the weights (n D, D) for those n.
        """
        taps, summed = weight.permute(2, 0, 1).contiguous().unbind(), []
        for offset in (-1, 0, 1):
            # Of the j-th character of a molecule, the taps that see that molecule. Its own reaches every character.
            seen = [
                [tap for t, tap in enumerate(taps) if (j - self.padding[0] + t) // self.rate == offset]
                for j in range(self.rate)
            ]
            reached = [j for j in range(self.rate) if seen[j]]
            summed.append((offset, reached[0], torch.cat([sum(seen[j][1:], seen[j][0]) for j in reached])))
        return summed

    def _repeated(self, molecules, summed):
        """The convolution over molecules, repeated: (B, M, D) -> (B, S, D)."""
        total = 0
        for offset, first, weight in summed:
            part = F.linear(molecules, weight).unflatten(-1, (-1, molecules.shape[-1]))
            part = part[:, 1:] if offset == 1 else part[:, :-1] if offset == -1 else part
            around = (first, self.rate - first - part.shape[2], max(0, -offset), max(0, offset))
            total = total + F.pad(part, (0, 0, *around))
        return total.flatten(1, 2)

    def _products(self, fused, characters, molecules, weight, summed):
        """Both, without the bias, in the precision of products; an adapter's normalisation leaves fp32."""
        kind, summed = precision(characters), sorted(summed, key=lambda each: abs(each[0]))  # its own molecule first
        return fused.Projection.apply(
            characters.to(kind), molecules.to(kind),
            weight.permute(2, 1, 0).to(kind).contiguous(), [t - self.padding[0] for t in range(weight.shape[2])],
            [(offset, first) for offset, first, _ in summed], *(each.to(kind) for *_, each in summed),
        )  # fmt: skip

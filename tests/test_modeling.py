"""The contracts of the model: parity with stock CANINE, and outputs that do not depend on padding or batch mates."""

import itertools
import math

import pytest
import torch
from conftest import SMALL
from torch.nn import Dropout
from transformers import CanineConfig, CanineModel

from domain_canine import (
    DomainCanineForMaskedLM,
    DomainCanineForSequenceClassification,
    DomainCanineModel,
)
from domain_canine.layers_domain_canine import as_bias
from domain_canine.pretrained import load_model
from domain_canine.tokenization_domain_canine import CLS, SEP

TOLERANCE = 1e-4


def random_names(*lengths: int) -> torch.Tensor:
    """Framed random letters, (B, longest + 2), padded with 0."""
    ids = torch.zeros(len(lengths), max(lengths) + 2, dtype=torch.long)
    for row, length in zip(ids, lengths):
        row[0], row[length + 1] = CLS, SEP
        row[1 : length + 1] = torch.randint(97, 123, (length,))
    return ids


def padded_safely(ids: torch.Tensor) -> torch.Tensor:
    """As much padding as makes stock CANINE's outputs settle."""
    length = 4 * ((ids.shape[1] + 5) // 4) + 4
    return torch.nn.functional.pad(ids, (0, length - ids.shape[1]))


def trained_without_dropout(model):
    """In training mode, and yet to be compared."""
    for module in model.train().modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    return model


@pytest.fixture
def stock(tmp_path):
    model = CanineModel(CanineConfig(**SMALL)).eval()
    model.save_pretrained(tmp_path / "stock")
    return model


@pytest.fixture
def ours(stock, tmp_path):
    model, loaded = DomainCanineModel.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"] and not loaded["mismatched_keys"]
    return model.eval()


# 125 and 126 letters (127 and 128 code points) are left out: stock has no padding-independent answer there.
@pytest.mark.parametrize("lengths", [(1, 2), (3, 4), (5, 6), (7, 16), (13, 40), (100, 124), (130, 20), (252, 200)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_parity_with_stock_canine(stock, ours, lengths, attention):
    ids = random_names(*lengths)
    safe = padded_safely(ids)
    ours.set_attn_implementation(attention)
    assert ours.config._attn_implementation == attention
    with torch.no_grad():
        expected = stock(safe, attention_mask=(safe != 0).float())
        found = ours(ids)
    real = ids != 0
    assert (expected.last_hidden_state[:, : ids.shape[1]] - found.last_hidden_state)[real].abs().max() <= TOLERANCE
    assert (expected.pooler_output - found.pooler_output).abs().max() <= TOLERANCE


def test_parity_of_the_full_configuration():
    stock = CanineModel(CanineConfig()).eval()
    ours = DomainCanineModel(DomainCanineForMaskedLM.config_class()).eval()
    ours.load_state_dict(stock.state_dict())
    ids = random_names(9, 30)
    safe = padded_safely(ids)
    with torch.no_grad():
        expected = stock(safe, attention_mask=(safe != 0).float()).last_hidden_state[:, : ids.shape[1]]
        found = ours(ids).last_hidden_state
    assert (expected - found)[ids != 0].abs().max() <= TOLERANCE


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [(12, 5, 21), (130, 20)])
def test_gradients_match_stock_canine(stock, ours, lengths, training):
    """In training queries, keys and values are one product."""
    if training:
        trained_without_dropout(ours)
    ids = random_names(*lengths)
    safe = padded_safely(ids)
    real = (ids != 0)[..., None]
    weight = torch.randn(SMALL["hidden_size"])
    expected = stock(safe, attention_mask=(safe != 0).float()).last_hidden_state[:, : ids.shape[1]]
    (expected * real * weight).sum().backward()
    (ours(ids).last_hidden_state * real * weight).sum().backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in ours.named_parameters():
        if "pooler" not in name:
            scale = max(1.0, theirs[name].grad.abs().max().item())
            assert (parameter.grad - theirs[name].grad).abs().max() <= TOLERANCE * scale, name


@pytest.mark.parametrize("length", [1, 2, 4, 5, 13, 62, 123, 124, 125, 126, 127, 128, 129, 251, 253])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_outputs_depend_on_neither_padding_nor_batch_mates(model, length, attention):
    model.set_attn_implementation(attention)
    assert model.config._attn_implementation == attention
    ids = random_names(length)
    short, longer = random_names(length, 60)[1:], random_names(255)
    with torch.no_grad():
        alone = model(ids).logits[0]
        for mates in (short, longer):
            width = max(mates.shape[1], ids.shape[1])
            rows = [torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in (ids, mates)]
            batch = torch.cat(rows)
            assert (model(batch).logits[0, : length + 2] - alone).abs().max() <= TOLERANCE
            assert (
                model(batch, attention_mask=(batch != 0).long()).logits[0, : length + 2] - alone
            ).abs().max() <= TOLERANCE
        for extra in (1, 2, 3, 4, 128 - length):
            if extra > 0:
                wide = torch.nn.functional.pad(ids, (0, extra))
                assert (model(wide).logits[0, : length + 2] - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("positions", [[[1, 5, 9], [2, 14, 0]], [[9], [2]]])
def test_masked_positions_give_the_same_logits_as_all_positions(model, positions):
    with torch.no_grad():
        for parameter in model.parameters():  # biases are zero otherwise
            parameter += 0.05 * torch.randn_like(parameter)
        ids, positions = random_names(9, 14), torch.tensor(positions)
        everywhere = model(ids).logits
        there = model(ids, masked_positions=positions).logits
    assert there.shape == (*positions.shape, 128)
    assert (there - everywhere.gather(1, positions[..., None].expand(-1, -1, 128))).abs().max() <= 1e-5


def adapt(attention, *names: str) -> None:
    """Stands for what adapters and quantisation do: the layer is another one, and its weights are not all of it."""
    for name in names:
        setattr(attention, name, torch.nn.Sequential(getattr(attention, name), torch.nn.Tanh()))


def test_an_adapter_counts_for_one_query_too(model):
    adapt(model.canine.final_char_encoder.layer[0].attention["self"], "key", "value")
    ids = random_names(9, 14)
    with torch.no_grad():
        everywhere, there = model(ids).logits, model(ids, masked_positions=torch.tensor([[3], [3]])).logits
    assert (there[:, 0] - everywhere[:, 3]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_an_adapter_counts_in_training_too(model, name):
    ids = random_names(9, 14)
    adapt(model.canine.encoder.layer[0].attention["self"], name)
    expected = model(ids).logits
    assert (trained_without_dropout(model)(ids).logits - expected).abs().max() <= 1e-5


def test_a_hook_is_called_in_training(model):
    """Pruning and old weight norms are hooks that make the weights."""
    called, attention = [], model.train().canine.encoder.layer[0].attention["self"]
    for hook in (attention.query.register_forward_hook, attention.value.register_forward_pre_hook):
        handle = hook(lambda *args: called.append(1))
        model(random_names(9))
        handle.remove()
    assert len(called) == 2


def test_the_bias_has_the_precision_of_attention():
    mask, states = torch.tensor([[True, False, True]]), torch.ones(1, 3, 2)
    assert as_bias(mask, states).tolist() == [[0, -math.inf, 0]]
    assert as_bias(mask.to("meta"), states.to("meta")).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert as_bias(mask, states).dtype == torch.bfloat16
        assert as_bias(mask, states.double()).dtype == torch.float64


def test_loss_is_the_mean_over_targets(model):
    ids = random_names(9, 14)
    positions, labels = torch.tensor([[1, 5], [2, 0]]), torch.tensor([[97, 98], [99, -100]])
    dense = torch.full(ids.shape, -100)
    dense[0, 1], dense[0, 5], dense[1, 2] = 97, 98, 99
    with torch.no_grad():
        logits = model(ids).logits.log_softmax(-1)
        by_hand = -(logits[0, 1, 97] + logits[0, 5, 98] + logits[1, 2, 99])
        sparse = model(ids, masked_positions=positions, labels=labels)
        assert torch.allclose(sparse.loss, by_hand / 3, atol=1e-5)
        assert torch.allclose(model(ids, labels=dense).loss, by_hand / 3, atol=1e-5)
        assert torch.allclose(model(ids, labels=dense, num_items_in_batch=10).loss, by_hand / 10, atol=1e-5)
        weights = torch.tensor([2.0, 5.0])
        weighted = -(2 * logits[0, 1, 97] + 2 * logits[0, 5, 98] + 5 * logits[1, 2, 99]) / 9
        loss = model(ids, masked_positions=positions, labels=labels, loss_weights=weights).loss
        assert torch.allclose(loss, weighted, atol=1e-5)
        empty = model(ids, masked_positions=positions, labels=torch.full_like(labels, -100))
        assert empty.loss == 0


def test_any_order_loss_of_the_model_is_the_mean_over_all_orders_of_a_name(model):
    """log p over each of the 24 orders of revealing 4 characters, one forward pass a step; against weighted losses."""
    name = random_names(4)
    n = 4

    def masked(positions):
        ids = name.clone()
        ids[0, [p + 1 for p in positions]] = 0xE003
        return ids

    with torch.no_grad():
        per_order = []
        for order in itertools.permutations(range(n)):
            nats = 0.0
            for step, position in enumerate(order):
                logits = model(masked(order[step:])).logits[0, position + 1].log_softmax(-1)
                nats -= logits[name[0, position + 1]].item()
            per_order.append(nats)
        expected = sum(per_order) / len(per_order)
        found = 0.0
        for k in range(1, n + 1):
            for subset in itertools.combinations(range(n), k):
                positions = torch.tensor([subset]) + 1
                loss = model(
                    masked(subset), masked_positions=positions, labels=name.gather(1, positions),
                    loss_weights=torch.tensor([n / k]), num_items_in_batch=1,
                ).loss  # fmt: skip
                found += loss.item() / n / math.comb(n, k)  # k uniform over 1 .. 4, then the subset
    assert found == pytest.approx(expected, rel=1e-5)


def test_code_points_beyond_the_classes_are_inputs(model):
    ids = random_names(6)
    ids[0, 3] = 0x10FFFF
    assert model(ids).logits.isfinite().all()


def test_a_name_of_padding_alone_gives_no_nan(model):
    ids = torch.cat([random_names(6), torch.zeros(1, 8, dtype=torch.long)])
    loss = model(ids, labels=torch.where(ids == 97, ids, -100)).loss
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_stock_checkpoint_leaves_only_its_pooler_and_the_head_over(stock, tmp_path):
    model, loaded = DomainCanineForMaskedLM.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert set(loaded["unexpected_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert loaded["missing_keys"] and all(key.startswith("lm_head.") for key in loaded["missing_keys"])
    theirs = stock.state_dict()
    for name, weight in model.canine.state_dict().items():
        assert torch.equal(weight, theirs[name]), name
    assert torch.equal(
        load_model(str(tmp_path / "stock")).canine.projection.conv.weight, theirs["projection.conv.weight"]
    )


def test_outputs_as_users_of_transformers_expect(model):
    ids = random_names(9)
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 2 + (SMALL["num_hidden_layers"] + 1) + 2 and out.attentions is None
    assert isinstance(model(ids, return_dict=False), tuple)
    with pytest.raises(ValueError, match="eager"):
        model(ids, output_attentions=True)
    model.set_attn_implementation("eager")
    assert len(model(ids, output_attentions=True).attentions) == SMALL["num_hidden_layers"] + 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_weights_are_dropped_in_training(config, attention):
    config.hidden_dropout_prob = 0.0
    model = DomainCanineForMaskedLM(config).train()
    model.set_attn_implementation(attention)
    ids = random_names(9)
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)


def test_embeddings_can_stand_for_code_points(model):
    ids = random_names(9)
    embeddings = model.canine.char_embeddings.code_points(ids)
    assert torch.allclose(model(inputs_embeds=embeddings).logits, model(ids).logits, atol=1e-5)
    with pytest.raises(ValueError, match="either"):
        model(ids, inputs_embeds=embeddings)


def test_gradient_checkpointing_changes_nothing(model):
    trained_without_dropout(model)
    ids = random_names(9, 5)
    labels = torch.where(ids == 0, -100, ids.clamp(max=127))
    gradients = []
    assert model.get_input_embeddings() is model.canine.char_embeddings
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=labels).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize(
    ("labels_of", "labels"),
    [(3, torch.tensor([0, 2])), (1, torch.tensor([0.5, -1.0])), (3, torch.tensor([[1.0, 0, 1], [0, 0, 1.0]]))],
)
def test_classifier_matches_stock(stock, tmp_path, labels_of, labels):
    from transformers import CanineForSequenceClassification

    theirs = CanineForSequenceClassification.from_pretrained(tmp_path / "stock", num_labels=labels_of).eval()
    ours = DomainCanineForSequenceClassification.from_pretrained(tmp_path / "stock", num_labels=labels_of).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = random_names(9, 12)
    safe = padded_safely(ids)
    with torch.no_grad():
        expected = theirs(safe, attention_mask=(safe != 0).long(), labels=labels)
        found = ours(ids, labels=labels)
    assert torch.allclose(expected.logits, found.logits, atol=TOLERANCE)
    assert torch.allclose(expected.loss, found.loss, atol=TOLERANCE)


def test_positions_may_be_given(model, stock, ours):
    ids = random_names(11)
    positions = torch.arange(13)[None]
    assert torch.allclose(model(ids, position_ids=positions).logits, model(ids).logits, atol=1e-5)
    safe = padded_safely(ids)
    others, theirs = positions.flip(1), torch.arange(safe.shape[1])[None].clone()
    theirs[:, :13] = others
    with torch.no_grad():
        expected = stock(safe, (safe != 0).float(), position_ids=theirs).last_hidden_state[:, :13]
        assert (ours(ids, position_ids=others).last_hidden_state - expected).abs().max() <= TOLERANCE


def test_hidden_states_are_those_of_the_input(model, stock, ours):
    ids = random_names(11, 8)  # 13 code points in 16 slots
    safe = padded_safely(ids)
    with torch.no_grad():
        found = ours(ids, output_hidden_states=True)
        expected = stock(safe, (safe != 0).float(), output_hidden_states=True).hidden_states
        sparse = ours(ids, masked_positions=torch.tensor([[1, 2], [3, 0]]), output_hidden_states=True)
    widths = [13, 13, *[5] * (SMALL["num_hidden_layers"] + 1), 13, 13]
    assert [each.shape[1] for each in found.hidden_states] == widths
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert torch.equal(sparse.hidden_states[-1], sparse.last_hidden_state)
    real = ids != 0
    for i in (0, 1, -2, -1):
        assert (found.hidden_states[i] - expected[i][:, :13])[real].abs().max() <= TOLERANCE


def test_ascii_is_looked_up_once_to_the_same_outputs_and_gradients(model):
    ids = random_names(9, 14, 126)
    ids[0, 3], ids[1, 2], ids[1, 5] = 0xE003, 0xE007, 127
    found = []
    for ascii_only in (False, True):
        model.zero_grad()
        logits = model(ids, ascii_only=ascii_only).logits
        (logits * logits).sum().backward()
        found.append((logits.detach(), [parameter.grad for parameter in model.parameters()]))
    (plain, gradients), (looked_up, others) = found
    assert torch.allclose(plain, looked_up, atol=1e-5)
    assert all((a - b).abs().max() <= 1e-5 * max(1.0, a.abs().max()) for a, b in zip(gradients, others))


def test_nothing_is_computed_for_nobody(model, monkeypatch):
    """[CLS] of the last deep layer is for the pooler; the last layer and the head are for the masked positions."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, given, out, name=name: widths.update({name: out.shape[1]}))
    ids = random_names(9, 14)  # 16 code points and the 2 beyond: 20 slots, 5 molecules
    model(ids, masked_positions=torch.tensor([[1, 5, 9], [2, 14, 0]]))
    deep, last = "canine.encoder.layer.{}.{}", "canine.final_char_encoder.layer.0.{}"
    assert widths[deep.format(0, "attention.self.query")] == 6 == widths[deep.format(1, "attention.self.key")]
    assert widths[deep.format(1, "attention.self.query")] == 5 == widths[deep.format(1, "output.dense")]
    assert widths[last.format("attention.self.key")] == 20
    for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
        assert widths[last.format(part)] == 3
    assert widths["lm_head.decoder"] == 3
    # Of one position neither keys nor values of all characters, unless their layers are watched.
    monkeypatch.setattr("domain_canine.layers_domain_canine.is_plain", lambda linear: True)
    widths.clear()
    model(ids, masked_positions=torch.tensor([[1], [2]]))
    assert widths["lm_head.decoder"] == 1 and not {
        last.format(f"attention.self.{part}") for part in ("key", "value")
    } & {*widths}
    # All of it where all is asked for.
    assert len(model(ids, output_hidden_states=True).hidden_states[-4][0]) == 6
    assert widths[deep.format(1, "output.dense")] == 6 and widths["lm_head.decoder"] == 16

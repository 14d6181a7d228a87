"""What only a GPU shows of a step: that it waits for nothing, its memory, its kernels, and that it can be replayed."""

import pytest
import torch
from conftest import SMALL
from small_runs import entries, make_trainer
from torch.nn import functional as F
from transformers import TrainerCallback

from benchmarks.train_step import as_stock, make_batches, on, our_side, stock_side
from domain_canine.configuration_domain_canine import DomainCanineConfig
from domain_canine.layers_domain_canine import as_bias
from domain_canine.metrics import MaskedFigures
from domain_canine.recorded import RecordedSteps, cut, largest_pass
from domain_canine.sample import sample_names

pytestmark = pytest.mark.gpu
NAMES = sample_names(20_000)


def test_a_step_does_not_wait_for_the_device():
    side, batches = our_side(DomainCanineConfig(**SMALL), "cuda"), on("cuda", make_batches(NAMES, 64, 8, False)[0])
    for batch in batches:
        side.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            side.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WaitsForNothing(TrainerCallback):
    """An operation that waits for the device is an error between these steps."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            torch.cuda.set_sync_debug_mode("default")


def record_waiting(record):
    """Recording a step waits, replaying it does not."""

    def recorded(self, batch):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return record(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return recorded


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_the_trainer_does_not_wait_for_the_device(tmp_path, monkeypatch, accumulation):
    monkeypatch.setattr(RecordedSteps, "_record", record_waiting(RecordedSteps._record))
    monkeypatch.setattr("domain_canine.memory.joined", lambda *given: 1)
    trainer = make_trainer(
        tmp_path, use_cpu=False, bf16=True, dataloader_num_workers=1, per_device_train_batch_size=8, logging_steps=1000,
        gradient_accumulation_steps=accumulation, max_steps=9, save_strategy="no", eval_strategy="no",
    )  # fmt: skip
    trainer.add_callback(WaitsForNothing())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == 9 and trainer.recorded.records


def test_peak_memory_of_256_names_is_below_8_gb():
    side, batches = our_side(DomainCanineConfig(), "cuda"), on("cuda", make_batches(NAMES, 256, 8, False)[0])
    torch.cuda.reset_peak_memory_stats()
    for batch in batches:
        side.step(batch)
    assert torch.cuda.max_memory_allocated() < 8e9


def test_an_evaluation_of_4096_long_names_is_below_8_gb():
    """It takes several passes, on smaller GPUs more of them."""
    device, figures = torch.device("cuda"), MaskedFigures()
    (batch,) = on("cuda", make_batches(["x" * 100 + f"{i:04}.com" for i in range(4096)], 4096, 1, False)[0])
    side = our_side(DomainCanineConfig(), "cuda")
    side.model.eval()
    figures.begin(device)
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for part in cut(batch, largest_pass(device)):
            figures.add(side.model, part)
    assert torch.cuda.max_memory_allocated() < 8e9


def test_recorded_steps_are_those_that_are_started_kernel_by_kernel():
    """Losses and gradients, with dropout, which is drawn from the same state. From the third round on all are replayed."""
    sides, batches = [], on("cuda", make_batches(NAMES, 64, 6, False)[0])
    for recorded in (False, True):
        side = our_side(DomainCanineConfig(**SMALL), "cuda", recorded=recorded)
        torch.cuda.manual_seed(7)
        steps = []
        for i in (0, 2, 4) * 4:
            losses = [side.micro_step(batch)[0].item() for batch in batches[i : i + 2]]
            gradients = [parameter.grad.clone() for parameter in side.model.parameters()]
            steps.append((losses, gradients))
            side.optimizer.zero_grad()
        sides.append(steps)
    assert side.micro_step.records
    for (losses, gradients), (replayed, same) in zip(*sides):
        assert replayed == pytest.approx(losses, rel=1e-3)
        for one, other in zip(gradients, same):
            assert (one - other).norm() <= 2e-2 * one.norm() + 1e-4


def test_a_run_that_replays_has_the_log_of_one_that_does_not(tmp_path, monkeypatch):
    logs = []
    monkeypatch.setattr("domain_canine.memory.joined", lambda *given: 1)  # two micro-steps a step, as without records
    for plain in (False, True):
        trainer = make_trainer(
            tmp_path / str(plain), use_cpu=False, num_train_epochs=6, eval_strategy="no", save_strategy="no",
            no_cuda_graphs=plain,
        )  # fmt: skip
        trainer.train()
        logs.append((entries(trainer, "loss"), entries(trainer, "grad_norm")))
        assert (trainer.recorded is None) if plain else trainer.recorded.records
    (losses, norms), (others, expected) = logs
    assert losses == pytest.approx(others, rel=1e-2)
    # Gradients that are never zeroed would grow; those of one micro-step in two are smaller.
    assert norms == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("names, queries, keys", [(700, 6, 6), (700, 5, 6), (300, 20, 20), (300, 3, 20), (50, 64, 64)])
def test_fused_attention_is_attention(names, queries, keys):
    from domain_canine.fused_attention_domain_canine import Attention

    torch.manual_seed(0)
    made = torch.randn(names, keys, 3 * 768, device="cuda", dtype=torch.bfloat16)
    asked = torch.randn(names, queries, 768, device="cuda", dtype=torch.bfloat16)
    mask = torch.rand(names, keys, device="cuda") > 0.3
    mask[:, 0] = True
    own = queries == keys
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        states = (made if own else made[..., 768:]).to(dtype, copy=True).contiguous().requires_grad_()
        query = None if own else asked.to(dtype, copy=True).requires_grad_()
        bias = as_bias(mask[:, None, None], states)
        if dtype == torch.bfloat16:
            out = Attention.apply(query, states, bias, 12, 0.0)
        else:
            parts = states.split(768, -1)
            heads = [
                each.unflatten(-1, (12, 64)).transpose(1, 2) for each in (query if not own else parts[0], *parts[-2:])
            ]
            out = F.scaled_dot_product_attention(*heads, attn_mask=bias).transpose(1, 2).flatten(2)
        out.backward(torch.arange(out.numel(), device="cuda", dtype=torch.float64).cos().view(out.shape).to(dtype))
        found.append([out, states.grad] + ([] if own else [query.grad]))
    for mine, reference in zip(*found):
        assert (mine.double() - reference).norm() < 1e-2 * reference.norm()


def test_fused_normalisation_is_that_of_the_sum():
    from domain_canine.fused_domain_canine import ResidualNorm

    torch.manual_seed(0)
    given = [torch.randn(*size, device="cuda") for size in ((3001, 768), (768,), (3001, 768), (768,), (768,))]
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        states, added, residual, weight, bias = (each.bfloat16().to(dtype).requires_grad_() for each in given)
        if dtype == torch.bfloat16:
            out = ResidualNorm.apply(states, added, residual, weight, bias, 1e-12, 0.0)
        else:
            out = F.layer_norm(states + added + residual, (768,), weight, bias, 1e-12)
        out.backward(given[0].sin().to(dtype))
        found.append([out, *(each.grad for each in (states, added, residual, weight, bias))])
    for mine, reference in zip(*found):
        assert (mine.double() - reference).norm() < 1e-2 * reference.norm()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_fused_dropout_drops_the_share_that_is_asked_for_and_the_same_going_back(share):
    from domain_canine.fused_domain_canine import ResidualNorm

    states = torch.ones(4000, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    zeros, one = torch.zeros(4000, 768, device="cuda", dtype=torch.bfloat16), torch.ones(768, device="cuda")
    out = ResidualNorm.apply(states, None, zeros, one, zeros[0].float(), 1e-12, share)
    kept = out > 0
    assert kept.float().mean().item() == pytest.approx(1 - share, abs=2e-3)
    out.backward(torch.randn_like(out))
    assert (states.grad[~kept] == 0).all() and (states.grad[kept] != 0).float().mean() > 0.99
    again = ResidualNorm.apply(states, None, zeros, one, zeros[0].float(), 1e-12, share) > 0
    assert (again != kept).float().mean().item() == pytest.approx(2 * share * (1 - share), abs=3e-3)


def test_gradients_err_as_much_as_without_kernels(monkeypatch):
    """In bf16, each against fp32: of every parameter, so that none is another's."""
    monkeypatch.setattr(torch.backends, "fp32_precision", "ieee")
    config = DomainCanineConfig(num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    side, (batch,) = our_side(config, "cuda"), on("cuda", make_batches(NAMES, 64, 1, False)[0])

    def gradients(enabled, without):
        with monkeypatch.context() as patched:
            for module in ("layers", "molecules") if without else ():
                patched.setattr(f"domain_canine.{module}_domain_canine.kernels", lambda states: None)
            with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
                loss = side.loss(batch)
            return torch.autograd.grad(loss, list(side.model.parameters()), allow_unused=True)

    exact, mine, plain = gradients(False, False), gradients(True, False), gradients(True, True)
    for (name, _), true, fused, other in zip(side.model.named_parameters(), exact, mine, plain):
        assert (true is None) == (fused is None), name
        if true is not None:
            allowed = 3 * (other - true).norm() + 1e-2 * true.norm() + 1e-6
            assert (fused - true).norm() <= allowed, name


def test_bf16_errs_no_more_than_three_times_as_much_as_the_stock_model(monkeypatch):
    """The base model, each against its own fp32, at the masked positions."""
    monkeypatch.setattr(torch.backends, "fp32_precision", "ieee")  # Trainers of other tests leave TF32
    config = DomainCanineConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (batch,), errors = on("cuda", make_batches(NAMES, 64, 1, False)[0]), []
    ours, stock = our_side(config, "cuda"), stock_side(config, "cuda")
    stock.model.load_state_dict(ours.model.state_dict(), strict=False)
    padded = {name: values.cpu() if torch.is_tensor(values) else values for name, values in batch.items()}
    (padded,) = on("cuda", [as_stock(padded)])
    at = batch["masked_positions"][..., None].expand(-1, -1, config.vocab_size)

    def logits(side):
        if side is ours:
            return ours.model(**batch).logits
        states = stock.model.canine(padded["input_ids"], padded["attention_mask"]).last_hidden_state
        return stock.model.lm_head(states).gather(1, at)

    for side in (ours, stock):
        with torch.no_grad():
            exact = logits(side)
            with torch.autocast("cuda", torch.bfloat16):
                errors.append(((logits(side).float() - exact)[batch["labels"] >= 0]).abs().mean().item())
    assert errors[0] < 3 * errors[1]

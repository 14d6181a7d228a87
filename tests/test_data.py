"""Flags to sources, collators and batches."""

import pytest

from domain_canine import DataCollatorForCodePointMasking
from domain_canine.arguments import DataArguments, ModelArguments
from domain_canine.data import build_batches, build_collator
from domain_canine.errors import UserError
from domain_canine.prepare import Settings, prepare
from domain_canine.run_file import settings
from domain_canine.sources import open_source
from domain_canine.training_arguments import DomainTrainingArguments


def test_flags_reach_the_collator_and_the_batches(tmp_path, names_file, config):
    config.mask_code_point = 0xE123
    data = DataArguments(
        dataset=str(names_file), mlm_probability=0.3, mask_replace_prob=0.5, random_replace_prob=0.2, span_length=2
    )
    args = DomainTrainingArguments(
        output_dir=str(tmp_path / "x"), seed=9, per_device_train_batch_size=4, per_device_eval_batch_size=7,
        gradient_accumulation_steps=3, use_cpu=True,
    )  # fmt: skip
    collator = build_collator(data, args, config)
    expected = DataCollatorForCodePointMasking(0.3, 0.5, 0.2, 2, "mlm", 0xE123, 128, 9)
    assert collator == expected
    assert build_collator(DataArguments(objective="any_order"), args, config).objective == "any_order"
    args.data_seed = 4
    assert build_collator(data, args, config).seed == 4
    train, validation, _ = build_batches(data, args, collator)
    assert (train.plan.global_batch, train.plan.micro_steps, train.plan.seed) == (12, 3, 9)
    assert validation.plan.global_batch == 7 and validation.collator.mask_code_point == 0xE123
    assert not train.fixed_shapes and not train.plan.even
    data.fixed_shapes = True
    assert all(batches.fixed_shapes for batches in build_batches(data, args, collator)[:2])


def test_a_prepared_folder_and_its_first_names_are_trained_on(tmp_path, names_file, config):
    prepare(open_source(str(names_file)), tmp_path / "names", Settings(), quiet=True)
    args = DomainTrainingArguments(output_dir=str(tmp_path / "x"), per_device_train_batch_size=4, use_cpu=True)
    for wanted, held, trained in ((None, 21, 179), (50, 5, 45)):
        data = DataArguments(dataset=str(tmp_path / "names"), num_samples=wanted)
        train, validation, rows = build_batches(data, args, build_collator(data, args, config))
        assert (len(train), len(validation)) == (trained, held)
        assert sum(len(train[at]["labels"]) for [at] in train.sampler()) == trained
        assert (f"{trained} to train on, {held} for validation") in dict(rows)["names"]


def test_slots_a_batch_become_names_a_step(tmp_path, names_file, config):
    """The same for every division of the step."""
    plans = []
    for accumulated, slots in ((1, 1_200), (2, 600), (4, 300)):
        args = DomainTrainingArguments(
            output_dir=str(tmp_path / "x"), gradient_accumulation_steps=accumulated, use_cpu=True
        )
        data = DataArguments(dataset=str(names_file), slots_per_batch=slots)
        train, validation, _ = build_batches(data, args, build_collator(data, args, config))
        assert train.plan.even and not validation.plan.even
        assert args.per_device_train_batch_size == -(-train.plan.global_batch // accumulated)
        plans.append(train.plan.global_batch)
        told = settings(ModelArguments(model_size="tiny"), data, args)
        assert (told["names a step"], told["slots a step"]) == (None, 1_200) and "slots_per_batch" not in told
    assert 40 < plans[0] < 70 and len(set(plans)) == 1
    args = DomainTrainingArguments(output_dir=str(tmp_path / "x"), per_device_train_batch_size=7, use_cpu=True)
    told = settings(ModelArguments(model_size="tiny"), DataArguments(), args)
    assert (told["names a step"], told["slots a step"]) == (14, None)


def test_compiled_kernels_get_fixed_shapes(tmp_path, names_file, config):
    args = DomainTrainingArguments(output_dir=str(tmp_path / "x"), torch_compile=True, use_cpu=True)
    data = DataArguments(dataset=str(names_file))
    assert all(batches.fixed_shapes for batches in build_batches(data, args, build_collator(data, args, config))[:2])
    for flags in ({"streaming": True}, {"slots_per_batch": 500}):
        data = DataArguments(dataset=str(names_file), **flags)
        with pytest.raises(UserError, match=f"--torch_compile needs .* leave it or --{next(iter(flags))} out"):
            build_batches(data, args, build_collator(data, args, config))

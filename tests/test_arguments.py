import json

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from small_runs import make_trainer

from domain_canine.arguments import DataArguments, ModelArguments, code_point
from domain_canine.errors import UserError
from domain_canine.parser import Parser
from domain_canine.training_arguments import DomainTrainingArguments


def parse(*arguments: str):
    return Parser((ModelArguments, DataArguments, DomainTrainingArguments)).parse(list(arguments))


def test_the_defaults_are_the_published_run():
    model, data, args = parse()
    assert (model.model_name_or_path, model.model_size, model.mask_code_point) == (None, None, None)
    assert data.dataset == "humbleworth/registered-domains"
    assert (data.max_length, data.validation_split, data.mlm_probability, data.objective) == (128, 0.1, 0.15, "mlm")
    assert (data.mask_replace_prob, data.random_replace_prob, data.span_length) == (0.8, 0.1, 1)
    assert args.output_dir == "./domain-canine-model"
    assert (args.learning_rate, args.weight_decay, args.warmup_steps, args.max_grad_norm) == (1e-5, 0.01, 500, 1.0)
    assert args.lr_scheduler_type.value == "linear" and args.optim.value.startswith("adamw_torch")
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.num_train_epochs) == (256, 2, 5)
    assert (args.early_stopping_patience, args.save_steps, args.save_total_limit) == (3, 10_000, 3)
    assert args.eval_strategy.value == "epoch" and args.metric_for_best_model == "loss"
    assert args.dataloader_pin_memory and args.dataloader_num_workers >= 0
    assert args.project == "domain-canine-pretrain" and args.report_to == []
    assert not args.logging_nan_inf_filter and args.ddp_find_unused_parameters is False


def test_loader_flags_follow_the_workers(monkeypatch):
    _, _, args = parse("--dataloader_num_workers", "3")
    assert (args.dataloader_prefetch_factor, args.dataloader_persistent_workers) == (2, True)
    _, _, args = parse("--dataloader_num_workers", "0")
    assert (args.dataloader_prefetch_factor, args.dataloader_persistent_workers) == (None, False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    assert parse()[2].dataloader_num_workers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert parse()[2].dataloader_num_workers == 1


def test_old_flag_names():
    _, data, args = parse(
        *"--epochs 3 --batch_size 64 --dataset names.txt --num_samples 10 --resume_from ck --use_wandb "
        "--no_mixed_precision --warmup_steps 7 --save_steps 9 --streaming --learning_rate 3e-4".split()
    )
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.warmup_steps, args.save_steps) == (
        3,
        64,
        7,
        9,
    )
    assert (args.resume_from_checkpoint, args.learning_rate) == ("ck", 3e-4)
    assert args.use_wandb and args.no_mixed_precision and args.report_to == ["wandb"]
    assert data.dataset == "names.txt" and data.num_samples == 10 and data.streaming
    both = parse("--use_wandb", "--report_to", "tensorboard")[2]
    assert both.report_to == ["wandb", "tensorboard"]


def test_the_best_is_the_smallest_or_the_greatest_as_the_metric_wants():
    assert parse()[2].greater_is_better is False
    assert parse("--metric_for_best_model", "perplexity")[2].greater_is_better is False
    assert parse("--metric_for_best_model", "accuracy")[2].greater_is_better is True


def test_precision_follows_the_device(monkeypatch):
    """As far as it can be shown without one: the choice is made from what CUDA says of itself."""
    chosen = []

    def choose(bf16, capability, *flags):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: bf16)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
        monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda self: setattr(self, "_n_gpu", 2))
        monkeypatch.setattr(DomainTrainingArguments, "device", torch.device("cuda"))
        args = parse(*flags)[2]
        monkeypatch.undo()
        assert args._n_gpu == 1
        chosen.append((args.precision, args.tf32))

    choose(True, (9, 0))
    choose(False, (7, 5))
    choose(True, (8, 0), "--no_mixed_precision")
    choose(True, (8, 0), "--use_cpu")
    assert chosen == [("bf16", True), ("fp16", None), ("fp32", True), ("fp32", None)]


@pytest.mark.parametrize(
    "flags, processes, records",
    [
        ("", 1, True), ("--bf16", 1, True), ("--no_mixed_precision", 1, True), ("--no_cuda_graphs", 1, False),
        ("--fp16", 1, False), ("--gradient_checkpointing", 1, False),
        ("--activation_checkpointing", 1, False), ("--torch_compile", 1, False), ("--full_determinism", 1, False),
        ("--optim adafactor", 1, True), ("--optim schedule_free_adamw", 1, False), ("--optim lomo", 1, False), ("--fsdp full_shard", 2, False), ("", 2, True),
    ],
)  # fmt: skip
def test_steps_are_recorded_where_nothing_looks_at_the_host(monkeypatch, flags, processes, records):
    args = parse("--use_cpu", *flags.replace("--fp16", "").split())[2]
    args.fp16 = flags == "--fp16"
    on_gpus(monkeypatch, args, processes)
    assert args.records_steps is records
    monkeypatch.setattr(type(args), "device", torch.device("cpu"))
    assert not args.records_steps


@pytest.mark.parametrize(
    "device, flags, names",
    [
        ("cpu", "", 256), ("cuda", "", 4096), ("cuda", "--no_cuda_graphs", 4096), ("cuda", "--torch_compile", 256),
        ("cuda", "--fsdp full_shard", 256), ("cuda", "--per_device_eval_batch_size 7", 7),
    ],
)  # fmt: skip
def test_a_gpu_evaluates_many_names_at_once(monkeypatch, device, flags, names):
    monkeypatch.setattr("transformers.TrainingArguments.__post_init__", lambda self: setattr(self, "_n_gpu", 1))
    monkeypatch.setattr(DomainTrainingArguments, "device", torch.device(device))
    assert parse(*flags.split())[2].per_device_eval_batch_size == names


def on_gpus(monkeypatch, args, processes: int) -> None:
    monkeypatch.setattr(type(args), "device", torch.device("cuda"))
    monkeypatch.setattr(type(args), "world_size", processes)


@pytest.mark.parametrize("launcher", ["True", "false"])
def test_a_launcher_of_a_cpu_run_is_heeded_where_a_gpu_is(monkeypatch, launcher):
    """accelerate would put the model on the CPU, and the Trainer its batches on the GPU."""
    for name, found in {"is_available": True, "device_count": 1, "set_device": None, "is_bf16_supported": True,
                        "get_device_capability": (9, 0)}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *args, found=found, **kwargs: found)
    monkeypatch.setenv("ACCELERATE_USE_CPU", launcher)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        args = parse("--tf32", "false")[2]  # which asks the GPU itself
        told = args.device.type, args.precision, args.records_steps, args.per_device_eval_batch_size
        assert told == (("cpu", "fp32", False, 256) if launcher == "True" else ("cuda", "bf16", True, 4096))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_launcher_of_sharded_runs_records_nothing(monkeypatch, kind):
    args = parse("--use_cpu")[2]
    on_gpus(monkeypatch, args, 2)
    assert args.records_steps
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    assert not args.records_steps


def test_a_launcher_that_compiles_is_told_so_by_flag(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    assert not parse("--use_cpu")[2].torch_compile
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    args = parse("--use_cpu")[2]
    assert (args.torch_compile, args.torch_compile_backend, args.torch_compile_mode) == (True, "aot_eager", "default")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "reduce-overhead")
    with pytest.raises(UserError, match="reduce-overhead is not for this program"):
        parse("--use_cpu")


@pytest.mark.parametrize("launcher", ["no", "bf16", "fp16"])
def test_the_precision_is_what_the_flags_say_and_not_the_launcher(tmp_path, monkeypatch, launcher):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    for flags, precision in ({"no_mixed_precision": True}, "no"), ({}, "no"), ({"bf16": True}, "bf16"):
        trainer = make_trainer(tmp_path, **flags)
        assert trainer.accelerator.mixed_precision == precision
        assert trainer.args.precision == precision.replace("no", "fp32")
        AcceleratorState._reset_state(reset_partial_state=True)


def test_resume_without_a_path_means_the_newest():
    assert parse("--resume_from_checkpoint")[2].resume_from_checkpoint == "newest"


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_of_arguments(tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    entries = {"model_size": "tiny", "learning_rate": 1e-4, "streaming": True, "epochs": 2, "dataset": "x.txt",
               "save_total_limit": None, "resume_from_checkpoint": False}  # fmt: skip
    path.write_text(yaml.safe_dump(entries) if suffix == ".yaml" else json.dumps(entries))
    model, data, args = parse(str(path))
    assert (model.model_size, args.learning_rate, args.num_train_epochs) == ("tiny", 1e-4, 2)
    assert data.streaming and data.dataset == "x.txt" and args.resume_from_checkpoint is None
    assert parse(str(path), "--epochs", "7", "--resume_from_checkpoint")[2].num_train_epochs == 7
    path.write_text(json.dumps(entries | {"lerning_rate": 1}))
    with pytest.raises(UserError, match="unknown flag --lerning_rate; did you mean --learning_rate"):
        parse(str(path))
    path.write_text("[1, 2")
    with pytest.raises(UserError, match="not valid YAML"):
        parse(str(path))
    path.write_text('{"epochs": 3, "seed": 1, "epochs": 4}')
    with pytest.raises(UserError, match="epochs is given twice"):
        parse(str(path))
    path.write_text("config_overrides: !!map [1, 2]\n")
    with pytest.raises(UserError, match="not valid YAML"):
        parse(str(path))
    path.write_text("save_strategy: no\neval_strategy: no\n")  # which YAML 1.1 reads as booleans
    args = parse(str(path))[2]
    assert (args.save_strategy.value, args.eval_strategy.value) == ("no", "no")
    path.write_text("batch_size: 3\nper_device_train_batch_size: 4\n")
    with pytest.raises(UserError, match="--batch_size and --per_device_train_batch_size set the same; give one"):
        parse(str(path))
    path.write_text("batch_size: 3\n")  # which flags override, by whichever name
    assert parse(str(path), "--per_device_train_batch_size", "5")[2].per_device_train_batch_size == 5
    assert parse("--batch_size", "3", "--batch_size", "6")[2].per_device_train_batch_size == 6
    path.write_text("learning_rate: 1e-4\n")  # which YAML 1.1 reads as a string
    assert parse(str(path))[2].learning_rate == 1e-4
    with pytest.raises(UserError, match="cannot read"):
        parse(str(tmp_path / f"none{suffix}"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--fixed_shapes --slots_per_batch 9000", "--fixed_shapes and --slots_per_batch contradict"),
        ("--streaming --slots_per_batch 9000", "--slots_per_batch needs names that are prepared"),
        ("--slots_per_batch 100", "--slots_per_batch 100 is less than one name of --max_length 128 takes, 132"),
        ("--use_cpu --fp16", "--fp16 is for CUDA"),
        (
            "--batch_size 3 --per_device_train_batch_size 4",
            "--batch_size and --per_device_train_batch_size set the same",
        ),
        ("--data_seed -1", "--data_seed must be from 0 on"),
        ("--eval_steps -3", "--eval_steps must be above 0"),
        ("--dataloader_prefetch_factor 0", "--dataloader_prefetch_factor must be above 0"),
        ("--mask_replace_prob nan", "--mask_replace_prob nan"),
        ("--split_seed -1", "--split_seed must be from 0 on"),
        ("--lerning_rate 1", "unknown flag --lerning_rate; did you mean --learning_rate"),
        ("--zzzz", "unknown flag --zzzz; --help"),
        ("file.txt --epochs 1", "unexpected argument 'file.txt'"),
        ("--epochs many", "invalid float value: 'many'"),
        ("--epochs 0", "--num_train_epochs must be above 0, not 0"),
        ("--batch_size -1", "--per_device_train_batch_size must be above 0, not -1"),
        ("--objective next", "invalid choice: 'next'"),
        ("--model_size huge", "invalid choice: 'huge'"),
        ("--model_size tiny --model_name_or_path x", "contradict each other"),
        ("--config_overrides a=1", "needs --model_size"),
        ("--max_length 7", "--max_length must lie between 8 and 255 .*, not 7"),
        ("--max_length 300", "not 300"),
        ("--mlm_probability 1.5", "--mlm_probability must lie between 0 and 1, not 1.5"),
        ("--validation_split 0", "--validation_split must lie between 0 and 1"),
        ("--num_samples 0", "--num_samples must be above 0"),
        ("--mask_replace_prob 0.95", "at most 1 together"),
        ("--mask_code_point a", "'a' is no code point"),
        ("--mask_code_point U+0061", "not a private-use code point"),
        ("--mask_code_point U+E001", r"CANINE's \[SEP\]"),
        ("--seed 5000000000", "--seed must be from 0 on and below 2..32, not 5000000000"),
        ("--epochs nan", "--num_train_epochs must be above 0, not nan"),
        ("--learning_rate nan", "--learning_rate must be above 0"),
        ("--save_only_model", "not for this program"),
        ("--hub_strategy every_save", "invalid choice"),
        ("--metric_for_best_model bleu", "invalid choice: 'bleu'"),
        ("--bf16 --no_mixed_precision", "contradict each other"),
        ("--torch_compile_mode reduce-overhead", "overwrite the gradients .* without --torch_compile"),
        ("--early_stopping_patience -1", "must not be negative"),
        ("--save_strategy epoch", "invalid choice: 'epoch'"),
        ("--eval_strategy sometimes", "invalid choice: 'sometimes'"),
        ("--max_steps 0", "--max_steps must be above 0"),
        ("--objective any_order --span_length 2", "leave --mlm_probability and --span_length out"),
        ("--warmup_steps -5", "must not be negative"),
        ("--load_best_model_at_end", "always gets the best weights"),
        ("--dataset sample --streaming", "leave --streaming out"),
        ("--dataset x.txt --streaming --fixed_shapes", "--fixed_shapes needs names that are prepared"),
    ],
)
def test_mistakes_are_told_with_the_value_and_the_remedy(flags, told):
    with pytest.raises(UserError, match=told):
        parse(*flags.split())


def test_code_points_are_read_as_people_write_them():
    assert code_point("U+E003") == code_point("u+e003") == code_point("0xE003") == code_point("57347") == 0xE003


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    said = capsys.readouterr().out
    assert left.value.code == 0 and "1% more slots" in said
    assert all(f"--{name}" in said for name in ("dataset", "epochs", "batch_size", "resume_from", "full_determinism"))

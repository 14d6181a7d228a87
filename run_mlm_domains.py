#!/usr/bin/env python
"""Continue the pretraining of CANINE on domain names by masked language modelling.

    accelerate launch run_mlm_domains.py --dataset names.txt.gz --output_dir runs/mine
    accelerate launch run_mlm_domains.py run.yaml

Every flag, with its default: python run_mlm_domains.py --help
"""

import os
import signal
import sys

PARENT = os.getppid()  # before all that takes seconds: a launcher may die meanwhile
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor does Ctrl-C want a traceback of imports

from domain_canine import reporting, startup
from domain_canine.arguments import DataArguments, ModelArguments
from domain_canine.data import build_batches, build_collator
from domain_canine.errors import run
from domain_canine.model_card import write_card
from domain_canine.parser import Parser
from domain_canine.pretrained import build_model, build_tokenizer
from domain_canine.quiet import silence_libraries
from domain_canine.run_folder import RunFolder
from domain_canine.sharing import push_to_hub
from domain_canine.stopping import StopRequest
from domain_canine.trainer import DomainTrainer
from domain_canine.training_arguments import DomainTrainingArguments


def main() -> int:
    silence_libraries()
    parser = Parser((ModelArguments, DataArguments, DomainTrainingArguments), description=__doc__.splitlines()[0])
    arguments = parser.parse(sys.argv[1:])
    with StopRequest(PARENT) as stop, RunFolder(arguments[-1]) as run_folder:
        pretrain(*arguments, stop, run_folder)
    return 0


def pretrain(model_arguments, data_arguments, args, stop: StopRequest, run_folder: RunFolder) -> None:
    checkpoint = startup.prepare(args, model_arguments, data_arguments)

    model = build_model(model_arguments, data_arguments.objective)
    tokenizer = build_tokenizer(model, data_arguments.max_length)
    collator = build_collator(data_arguments, args, model.config)
    train, validation, data_rows = build_batches(data_arguments, args, collator)
    startup.print_table(args, model, model_arguments, data_rows, train, data_arguments.objective, checkpoint)

    trainer = DomainTrainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        stop=stop,
    )
    startup.record(run_folder, args, model_arguments, data_arguments, train.content, checkpoint, train.told)
    trainer.train(resume_from_checkpoint=checkpoint)

    which, metrics = trainer.save_final()
    if trainer.is_world_process_zero():
        write_card(trainer)
        startup.print_final(args.output_dir, which, metrics, trainer.kind, model.config.vocab_size)
        if args.push_to_hub:
            print(push_to_hub(trainer, lambda: write_card(trainer)), file=sys.stderr)
    reporting.finish()


if __name__ == "__main__":
    run(main, "; --resume_from_checkpoint goes on from the newest checkpoint, if there is one")

#!/usr/bin/env python
"""Fine-tune a model of domain names to tell classes of names apart, or to estimate a number.

    accelerate launch run_classify_domains.py --model_name_or_path runs/mine --train_file names.csv.gz \\
      --label_column label --output_dir runs/classifier

Every flag, with its default: python run_classify_domains.py --help
"""

import os
import signal
import sys

PARENT = os.getppid()  # before all that takes seconds: a launcher may die meanwhile
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nor does Ctrl-C want a traceback of imports

from domain_canine import reporting, startup
from domain_canine.arguments import LONGEST_INPUT
from domain_canine.classification import LabelFigures, import_sklearn
from domain_canine.classifier import ClassifierTrainer, build_classifier, class_weights
from domain_canine.classify_arguments import ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments
from domain_canine.errors import run
from domain_canine.labelled import build_batches, load_labelled, positive_index
from domain_canine.model_card import write_card
from domain_canine.parser import Parser
from domain_canine.predictions import write_report
from domain_canine.pretrained import build_tokenizer
from domain_canine.quiet import silence_libraries
from domain_canine.run_folder import RunFolder
from domain_canine.sharing import push_to_hub
from domain_canine.stopping import StopRequest


def main() -> int:
    silence_libraries()
    parser = Parser(
        (ClassifierArguments, ClassifyDataArguments, ClassifyTrainingArguments), description=__doc__.splitlines()[0]
    )
    arguments = parser.parse(sys.argv[1:])
    with StopRequest(PARENT) as stop, RunFolder(arguments[-1]) as run_folder:
        fine_tune(*arguments, stop, run_folder)
    return 0


def fine_tune(model_arguments, data_arguments, args, stop: StopRequest, run_folder: RunFolder) -> None:
    import_sklearn()
    args.choose_metric(data_arguments.task)
    checkpoint = startup.prepare(args, model_arguments, data_arguments)

    data = load_labelled(data_arguments)
    kind = LabelFigures(data.classes, positive_index(data_arguments, data))
    kind.insist_on(args.metric_for_best_model, data.validation.labels)
    model = build_classifier(model_arguments, data)
    train, validation = build_batches(data, args, class_weights(data_arguments, data))
    startup.print_table(args, model, model_arguments, data.told, train, data_arguments.task, checkpoint)

    trainer = ClassifierTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=build_tokenizer(model, LONGEST_INPUT),
        stop=stop,
        kind=kind,
    )
    startup.record(run_folder, args, model_arguments, data_arguments, data.content, checkpoint, data.facts)
    trainer.train(resume_from_checkpoint=checkpoint)

    which, metrics = trainer.save_final()
    if trainer.is_world_process_zero():
        write_card(trainer)
        startup.print_final(args.output_dir, which, metrics, trainer.kind)
        write_report(args, data.validation, trainer.kind)
        if args.push_to_hub:
            print(push_to_hub(trainer, lambda: write_card(trainer)), file=sys.stderr)
    reporting.finish()


if __name__ == "__main__":
    run(main, "; --resume_from_checkpoint goes on from the newest checkpoint, if there is one")

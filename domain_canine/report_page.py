"""The report's page: figures and curves put into HTML, in one file that asks for nothing else."""

import time
from html import escape

from .fill import fill
from .metrics import told_perplexity
from .model_card import FIGURES, duration
from .report_charts import bar_chart, line_chart
from .report_figures import Characters, NameBits, Row
from .report_style import STYLE
from .run_record import RunRecord

LISTED, EXAMPLES = 15, 10  # names of a list, names with a character hidden
# Bits from which a character gets the next colour: it had a chance of 1/2, 1/8, 1/32, 1/128, 1/512 at most.
SURPRISE = (1, 3, 5, 7, 9)
PLACES, FEW = 32, 30  # bars of a chart; characters below which a bar is pale


def page(record: RunRecord, characters: Characters, told: str, model) -> str:
    """The whole page.

    Args:
        record: of the run and its weights.
        characters: of the names that the model was shown.
        told: what these names are.
        model: DomainCanineForMaskedLM in evaluation mode.
    """
    title = escape((record.run or record.model).resolve().name)
    sections = [
        f'<header><h1>{title}</h1><p class="soft">{escape(_state(record))}</p>{_tiles(record)}</header>',
        _curves(record),
        _accuracy(characters, told, model.config.objective),
        _names(characters),
        _filled(model, characters.names),
        _run(record) if record.starts else "",
        f'<footer class="soft">Made by domain-canine on {time.strftime("%Y-%m-%d, %H:%M %Z")}.</footer>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _state(record):
    if not record.starts:
        return f"A model without the record of a run, in {record.model}."
    end = record.last_exit
    reason = str(end.get("reason")).rstrip(".")
    told = {"finished": "Finished", "stopped": reason[:1].upper() + reason[1:], "failed": f"Failed: {reason}"}
    state = told.get(end.get("status"), "No end is on record: the run lasts, or was killed")
    where = f"step {record.step:,}" if record.model == record.run and record.step else record.model.name
    return f"{state}. Started on {_moment(record.starts[0])}; shown are the weights of {where}."


def _moment(start):
    return start["started"][:16].replace("T", ", ")


def _tiles(record):
    state, tiles = record.state, []
    # Of a checkpoint between two evaluations: the latest one.
    metrics = record.metrics or next((each for each in record.history[::-1] if "eval_loss" in each), {})
    if "eval_perplexity" in metrics:
        when = "" if record.metrics else f", step {metrics['step']:,}"
        tiles.append((told_perplexity(metrics["eval_perplexity"]), f"validation perplexity{when}"))
    if "eval_accuracy" in metrics:
        tiles.append((f"{metrics['eval_accuracy']:.1%}", "accuracy, masked characters"))
    if count := record.parameters:
        tiles.append((f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}", "parameters"))
    if record.data.get("train"):
        tiles.append((f"{record.data['train']:,}", "names to train on"))
    if state:
        left = f" of {state['max_steps']:,}" if state["global_step"] < state["max_steps"] else ""
        tiles.append((f"{state['global_step']:,}{left}", "steps"))
    if seconds := record.seconds():
        tiles.append((duration(seconds), "spent in steps"))
    told = "".join(f'<div><b>{value}</b><span class="soft">{what}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{told}</div>'


# ---- curves


def _curves(record):
    marks = dict.fromkeys(record.resumed_from, "resumed")
    if record.last_exit.get("status") in ("stopped", "failed"):
        marks[record.state.get("global_step", 0)] = record.last_exit["status"]
    charts = []
    for title, label, train, validation, log in (
        ("Loss", "nats a masked character", "loss", "eval_loss", False),
        ("Perplexity", "of a masked character, log scale", "perplexity", "eval_perplexity", True),
        ("Learning rate", "learning rate", "learning_rate", None, False),
        ("Speed", "names a second", "names_per_second", None, False),
    ):
        series = {"training": record.points(train), "validation": record.points(validation) if validation else []}
        series = {name: points for name, points in series.items() if points}
        if chart := line_chart(label, series, log, marks):
            legend = "".join(f'<span><i class="{name}"></i>{name}</span>' for name in series)
            legend = f'<div class="legend soft">{legend}</div>' if validation else ""
            charts.append(f'<figure class="card"><h3>{title}</h3>{legend}{chart}</figure>')
    return _section("Curves", f'<div class="grid">{"".join(charts)}</div>') if charts else ""


# ---- what the model knows


def _accuracy(characters: Characters, told, objective):
    names, count = f"{len(characters.names):,}", f"{len(characters.of):,}"
    masks = "any number" if objective == "any_order" else "15%"
    warning = ' class="card warning"' if told.startswith("synthetic") else ""
    head = ("part", "count", "accuracy", "top 5", "perplexity", "bits")
    parts = [
        (
            row.key,
            f"{row.count:,}",
            f"{row.accuracy:.1%}",
            f"{row.top5:.1%}",
            f"{row.perplexity:.3f}",
            f"{row.bits:.3f}",
        )
        for row in characters.by_part()
    ]
    charts = "".join(
        f'<figure class="card"><h3>Accuracy by place, from the {side} of the name</h3>{_places(rows, side)}</figure>'
        for side, rows in (("start", characters.from_start()), ("end", characters.from_end()))
    )
    return _section(
        "What it knows",
        f"<p{warning}>{names} {escape(told)}. Each of their {count} characters is masked alone and predicted from all "
        f"others; a validation masks {masks} at once, which is harder. The suffix is the last dot and what follows, "
        "bits are per character.</p>",
        f'<div class="card">{_table(head, parts)}</div><div class="grid">{charts}</div>',
        '<div class="card"><h3>Accuracy by character, the most frequent first, with their number</h3>'
        f'<div class="columns">{"".join(map(_character, characters.by_character()))}</div></div>',
    )


def _places(rows: list[Row], side):
    bars = [
        (str(row.key), row.accuracy, row.count < FEW, f"{row.key} from the {side}: {row.accuracy:.1%} of {row.count:,}")
        for row in rows[:PLACES]
    ]
    chart = bar_chart(f"share that is predicted right; pale: under {FEW} characters", f"place from the {side}", bars)
    numbers = [(str(row.key), f"{row.count:,}", f"{row.accuracy:.1%}", f"{row.perplexity:.2f}") for row in rows]
    table = _table(("place", "characters", "accuracy", "perplexity"), numbers)
    return f"{chart}<details><summary>Numbers</summary>{table}</details>"


def _character(row: Row):
    told = f"{row.key}: {row.accuracy:.1%} of {row.count:,}, perplexity {row.perplexity:.2f}"
    return (
        f'<div class="row" title="{escape(told)}"><code>{escape(row.key)}</code>'
        f'<div class="track"><i style="width:{row.accuracy:.1%}"></i></div><span>{row.accuracy:.1%}</span>'
        f'<span class="soft">{row.count:,}</span></div>'
    )


def _names(characters: Characters):
    names = characters.of_names()
    many = min(LISTED, max(1, len(names) // 2))
    steps = [("s0", "more"), *((f"s{index}", f"1/{2**bits}") for index, bits in enumerate(SURPRISE, 1))]
    scale = "".join(f'<s class="{css}">{told}</s>' for css, told in steps)
    lists = []
    for title, some in (("Hardest names", names[:many]), ("Easiest names", names[::-1][:many])):
        rows = [(_coloured(each), f"{each.mean:.2f}") for each in some]
        table = _table(("name", "bits a character"), rows, markup=True)
        lists.append(f'<div class="card"><h3>{title}</h3>{table}</div>')
    return _section(
        "Names",
        f'<div class="scale soft">Chance that the model gave a character, at most: {scale}</div>',
        f'<div class="grid">{"".join(lists)}</div>',
    )


def _coloured(name: NameBits):
    letters = [
        f'<s class="s{sum(bits >= least for least in SURPRISE)}" title="{letter}: {2**-bits:.1%}">{letter}</s>'
        for letter, bits in zip(name.name, name.bits)
    ]
    return f'<span class="domain">{"".join(letters)}</span>'


def _filled(model, names: list[str]):
    """The middle of the first label of some names, hidden."""
    rows = []
    for name in names[:EXAMPLES]:
        at = name.index(".") // 2
        before, hidden, behind = name[:at], name[at], name[at + 1 :]
        [(_, candidates)] = fill(model, f"{before}?{behind}").steps
        guesses = [
            f'<span class="guess{" right" if letter == hidden else ""}"><code>{letter}</code> {chance:.1%}</span>'
            for letter, chance in candidates
        ]
        rows.append((f'<span class="domain">{before}<mark>{hidden}</mark>{behind}</span>', "".join(guesses)))
    table = _table(("name", "what the model offers"), rows, markup=True, numbers=False)
    return _section(
        "Missing characters",
        "<p>The underlined character was hidden; what the model offers for it, the right one in bold.</p>",
        f'<div class="card">{table}</div>',
    )


# ---- the run


def _data(record):
    data, settings = record.data, record.settings
    where = "lines at the head of the stream" if settings["streaming"] else "lines read"
    rows = [
        (where if why == "lines" else why.replace("_", " "), f"{count:,}")
        for why, count in data["counts"].items()
        if count
    ]
    sides = (("names to train on", "train"), ("names for validation", "validation"))
    rows += [(told, f"{data[side]:,}") for told, side in sides if data[side]]
    return f"<p><code>{escape(settings['dataset'])}</code></p>{_table(('', ''), rows)}"


def _run(record):
    config, size = record.config, record.settings["model_size"]
    shape = [config.get(name, "?") for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")]
    facts = [
        ("started from", f"random weights ({size})" if size else str(record.base or "not recorded")),
        ("layers, width, heads", ", ".join(map(str, shape))),
        *((name, str(value)) for name, value in record.machine.items()),
        *((told, f"{record.metrics[figure]:.4f}") for figure, _, told in FIGURES if figure in record.metrics),
    ]
    starts = [(_moment(each), f"{each.get('resumed_from') or 0:,}") for each in record.starts]
    cards = [
        ("Data", _data(record) if record.data else "not recorded"),
        ("Model, machine, validation", _table(("", ""), facts)),
        ("Starts", _table(("at", "from step"), starts)),
        ("Arguments", _table(("argument", "value", "default"), record.arguments())),
    ]
    *left, right = (f'<div class="card"><h3>{title}</h3>{table}</div>' for title, table in cards)
    return _section("Run", f'<div class="grid"><div>{"".join(left)}</div><div>{right}</div></div>')


# ---- HTML


def _section(title, *parts):
    return f"<section>\n<h2>{title}</h2>\n" + "\n".join(parts) + "\n</section>"


def _table(head, rows, markup=False, numbers=True):
    """Columns behind the first hold numbers, right-aligned; cells of ``markup`` are HTML already."""
    css = ["", *([' class="n"' if numbers else ""] * (len(head) - 1))]
    titles = "".join(f"<th{each}>{escape(title)}</th>" for each, title in zip(css, head))
    titles = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    lines = []
    for row in rows:
        cells = "".join(f"<td{each}>{cell if markup else escape(cell)}</td>" for each, cell in zip(css, row))
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{titles}<tbody>{''.join(lines)}</tbody></table>"

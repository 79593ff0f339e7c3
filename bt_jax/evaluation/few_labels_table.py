"""The paper's Table 2, fine-tuning on few labels: one's own results beside those of the paper's six systems."""

from collections.abc import Sequence

from bt_jax.evaluation.results import Result, mean_and_spread
from bt_jax.optim.make import described_schedule

# Zbontar et al. 2021, Table 2: top-1 and top-5 at 1 % of the labels, then at 10 %.
PAPER = {
    "Supervised": {1: ("25.4%", "48.4%"), 10: ("56.4%", "80.4%")},
    "PIRL": {1: ("—", "57.2%"), 10: ("—", "83.8%")},
    "SimCLR": {1: ("48.3%", "75.5%"), 10: ("65.6%", "87.8%")},
    "BYOL": {1: ("53.2%", "78.4%"), 10: ("68.8%", "89.0%")},
    "SwAV": {1: ("53.9%", "78.5%"), 10: ("70.2%", "89.9%")},
    "Barlow Twins": {1: ("55.0%", "79.2%"), 10: ("69.7%", "89.3%")},
}
NAMES = {
    "barlow_twins": "Barlow Twins",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "swav": "SwAV",
    "pirl": "PIRL",
    "vicreg": "VICReg",
    "supervised": "pre-trained with labels",  # not the paper's Supervised, which sees no others
}
SIMCLR_LISTS = (12_811, 128_116)  # lines of 1percent.txt and 10percent.txt
IMAGENET_CLASSES = 1000
IMAGENET_IMAGES = 1_281_167
HEADER = ["labels", "method", "top-1", "top-5", "paper's top-1", "paper's top-5", "note"]
ABOUT_THE_PAPER = (
    "The paper's numbers are for ResNet-50 on ImageNet, each by its own protocol; not measured with bt_jax. PIRL and Supervised "
    "have label lists of their own, and Supervised is a ResNet-50 v2."
)

Row = tuple[tuple, list[str]]  # its place in the table, and its cells


def few_labels_table(results: Sequence[tuple[str, Result]]) -> str:
    """Table 2 as Markdown, with a numbered note for each of one's own rows.

    The paper's numbers stand in the row of the same method and share of labels if the test set has 1000 classes, as ImageNet
    has; the others have rows of their own.

    Args:
      results: (folder, content of its finetune.json).
    """
    ordered = sorted(results, key=lambda item: _place(item[1]))
    rows: list[Row] = [(_place(result), _cells(result, note)) for note, (_, result) in enumerate(ordered, 1)]
    shown = {(method_of(result), paper_percent(result)) for _, result in ordered}
    for place, (method, numbers) in enumerate(PAPER.items()):
        for percent, cells in numbers.items():
            if (method, percent) not in shown:
                rows.append(((1, percent, place, ""), [_imagenet(percent), method, "—", "—", *cells, ""]))
    lines = padded(HEADER, [cells for _, cells in sorted(rows, key=lambda row: row[0])])
    notes = [f"{number}. {_note(folder, result)}" for number, (folder, result) in enumerate(ordered, 1)]
    return "\n".join(["Table 2: semi-supervised, few labels", "", *lines, "", *notes, "", ABOUT_THE_PAPER])


def method_of(result: Result) -> str:
    """The name of a result's method, as in the paper's Table 2 if it is there."""
    checkpoint = result["checkpoint"]
    if checkpoint is None:
        return "Supervised"
    method = checkpoint.get("method")
    return "method not recorded" if method is None else NAMES.get(method, str(method))


def paper_percent(result: Result) -> int | None:
    """1 or 10 if the paper has numbers for this share of ImageNet; None for others, and for a number of labels per class.

    The labels are counted too: a share that comes with the data or a list is only what the config says. Lists differ by a few.
    """
    data = result["data"]
    if data["classes"] != IMAGENET_CLASSES or data["percent"] not in (1, 10):
        return None
    percent = int(data["percent"])
    expected = IMAGENET_IMAGES * percent / 100
    return percent if abs(data["labels"] - expected) < expected / 10 else None


def label_list(result: Result) -> str:
    """Which labels were used: SimCLR's list, another, or how many were chosen by which seed.

    SimCLR's lists are recognised by the name of the TFDS set, or by the number of files in a list.
    """
    data, config = result["data"], result["config"]
    if data["per_class"]:
        return f"{data['per_class']} per class by {_seeds(result)}"
    if data["chosen_by"] == "seed":
        return f"a stratified share by {_seeds(result)}"
    source = config["data"]
    is_subset = source["source"] == "tfds" and source["name"].startswith("imagenet2012_subset/")
    if data["chosen_by"] == "source":
        return "SimCLR's list" if is_subset else f"all labels of {data['train']}"
    return "SimCLR's list" if data["labels"] in SIMCLR_LISTS else f"the list {config['finetune']['list_file']}"


def padded(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table whose columns are aligned."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]


def _place(result: Result) -> tuple:
    percent, method = paper_percent(result), method_of(result)
    methods = list(PAPER)
    order = methods.index(method) if method in methods else len(methods)
    if percent is None:
        return (0, int(result["data"]["labels"]), order, method)
    return (1, percent, order, method)


def _cells(result: Result, note: int) -> list[str]:
    percent, method = paper_percent(result), method_of(result)
    own = [mean_and_spread(result, f"final.{name}") for name in ("top1", "top5")]
    paper = ("—", "—") if percent is None else PAPER.get(method, {}).get(percent, ("—", "—"))
    return [_share(result), method, *own, *paper, str(note)]


def _share(result: Result) -> str:
    percent, data = paper_percent(result), result["data"]
    if percent is not None:
        return _imagenet(percent)
    share = f"{data['per_class']} per class" if data["per_class"] else f"{data['percent']:g} %"
    return f"{share} of {data['train']}"


def _imagenet(percent: int) -> str:
    return f"{percent} % of ImageNet"


def _note(folder: str, result: Result) -> str:
    config, data, checkpoint = result["config"], result["data"], result["checkpoint"]
    sgd, tuning = config["sgd"], config["finetune"]
    if checkpoint is None:
        kind, rates = "from scratch", f"rate {tuning['learning_rate_from_scratch']:g}"
        encoder = config["model"]["arch"]
    else:
        kind = "fine-tuned"
        rates = f"rates {sgd['learning_rate_encoder']:g} (encoder) and {sgd['learning_rate_head']:g} (head)"
        step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
        width = "" if checkpoint["width"] == 64 else f" of width {checkpoint['width']}"
        encoder = f"{checkpoint['arch']}{width}{step}, {checkpoint['sha256'][:8]}"
    nesterov = ", Nesterov momentum" if sgd.get("nesterov") else ""
    if searched := [run["search"]["chosen"] for run in result["runs"] if "search" in run]:
        found = ", ".join(sorted({f"{rates['encoder']:g} and {rates['classifier']:g}" for rates in searched}))
        rates = f"rates of encoder and head chosen on held-out train images, {found}"
    return "; ".join(
        [
            f"Protocol: {tuning.get('protocol', 'not recorded')}",
            f"{kind}, batch {config['batch_size']}, {config['epochs']} epochs",
            f"{rates} × {config['batch_size']}/256, {described_schedule(sgd)}{nesterov}, weight decay {sgd['weight_decay']:g}",
            f"{label_list(result)}, {data['labels']} labels",
            encoder,
            f"tested on {data['test']}, {data['test_images']} images",
            f"from {folder}",
        ]
    )


def _seeds(result: Result) -> str:
    seeds = [str(run["seed"]) for run in result["runs"]]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"

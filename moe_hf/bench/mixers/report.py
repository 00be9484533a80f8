"""What the report of mixers says around its numbers: goals first, time and memory by length, perplexity, every case."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_hf.bench.harness.arms import FORWARD, TRAINING
from moe_hf.bench.harness.drawing import draw_lines, legend_below, picture
from moe_hf.bench.harness.goals import Verdict
from moe_hf.bench.harness.report import INTERRUPTED, Page, goals_section, machine_table, pictures_section
from moe_hf.bench.harness.results import Report
from moe_hf.bench.harness.tables import arm_table, markdown_table, milliseconds
from moe_hf.bench.mixers.attention_arms import FULL
from moe_hf.bench.mixers.sizes import WIDTH, Point

LENGTHS, PERPLEXITIES = "lengths", "perplexities"
"""Under these names the report holds, further, `Point`s, and numbers by the name of the attention."""

_MODES = {FORWARD: "forward", TRAINING: "forward + backward"}


def _text(report: Report, verdicts: Sequence[Verdict], pictures: Sequence[str]) -> Iterator[str]:
    yield f"Repeat it with `{report.command}`."
    yield (
        "Whole layers, one sequence, float32, one thread, CPU time of the process. Arms of one table ran in turns, in "
        "random order within each round, after warming up; medians [quartiles] of n samples; a call that takes minutes "
        "was timed once, cold. Ratios are the median of the ratios within a round. `difference` is the relative one "
        "between an arm's result (in training, the gradient of its input) and the first arm's, which was looked at "
        "before anything was timed. Memory is the most that PyTorch held at once within a call, beyond what was there. "
        "transformers' layers are its own for a CPU, with the same weights."
    )
    if report.interrupted:
        yield INTERRUPTED
    yield from goals_section(verdicts)
    yield from pictures_section("Time and memory by length", pictures)
    if report.further.get(LENGTHS):
        yield _lengths_table(report.further[LENGTHS])
    if report.further.get(PERPLEXITIES):
        number_of = report.further[PERPLEXITIES]
        yield "## Perplexity with sparse attention"
        yield (
            "A model of 2 layers of width 128, trained with full attention on contexts of 256 tokens of the embedded "
            "corpus, scored on conversations that it has not seen."
        )
        rows = [[name, f"{value:.3f}", f"{value / number_of[FULL] - 1:+.2%}"] for name, value in number_of.items()]
        yield markdown_table(["attention", "perplexity", "difference"], rows)
    yield "## Every case"
    for group in report.groups:
        yield f"**{group.title}**"
        if group.arms:
            yield markdown_table(*arm_table(group))
        yield from (f"- not measured: {skipped.name}: {skipped.reason}" for skipped in group.skipped)
    yield "## Machine"
    yield machine_table(report)


def _lengths_table(points: Sequence[Point]) -> str:
    lengths = sorted({point.length for point in points})
    text_of = {
        (point.kind, point.mode, point.length): (
            f"{milliseconds(point.seconds)} ms, {point.peak_bytes / 2**20:,.0f} MiB"
        )
        for point in points
    }
    rows = [
        [f"{kind}, {mode}", *[text_of.get((kind, mode, length), "") for length in lengths]]
        for kind, mode in dict.fromkeys((point.kind, point.mode) for point in points)
    ]
    return markdown_table(["layer", *[f"{length:,}" for length in lengths]], rows)


def draw_lengths(report: Report, folder: Path) -> list[Path]:
    """Two pictures, time and memory, each with a panel per mode, on logarithmic axes; returns their paths."""
    points: Sequence[Point] = report.further.get(LENGTHS, ())
    modes = [mode for mode in _MODES if any(point.mode == mode for point in points)]
    if not modes:
        return []
    drawn = []
    title = f"One layer of width {WIDTH}, one sequence, one thread"
    for name, label, field, unit in (
        ("time_by_length", "CPU milliseconds per call", "seconds", 1e-3),
        ("memory_by_length", "MiB held at once", "peak_bytes", 2.0**20),
    ):
        drawn.append(folder / f"{name}.png")
        with picture(drawn[-1], 1, len(modes), title=title) as (figure, panels):
            for axes, mode in zip(panels[0], modes, strict=True):
                lines: dict[str, list[tuple[float, float]]] = {}
                for point in points:
                    if point.mode == mode:
                        lines.setdefault(point.kind, []).append((point.length, getattr(point, field) / unit))
                draw_lines(axes, lines, _MODES[mode], "tokens", label)
            legend_below(figure, [point.kind for point in points])
    return drawn


MIXERS_PAGE = Page(_text, draw_lengths)

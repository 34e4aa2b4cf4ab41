"""Label a file of product reviews with a real model through ``shoal run``, then compare with the gold labels.

    python examples/demo.py [--rows N]

The model is a small base model that follows no instructions, so it is shown sixteen labelled reviews
before each new one. They are the same for every row: they are computed once and shared.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OUTPUT = ROOT / "out" / "demo"
LABELS = ("positive", "negative")
GOLD = "sentiment"


@dataclass(frozen=True)
class Score:
    """The answers counted by (gold label, answer), and what they cost in tokens."""

    pairs: Counter[tuple[str, str]]
    prompt_tokens: int
    computed_tokens: int
    saved_tokens: int

    @property
    def answered(self) -> int:
        return self.pairs.total()

    @property
    def right(self) -> int:
        return sum(count for (gold, answer), count in self.pairs.items() if gold == answer)

    @property
    def malformed(self) -> int:
        return sum(count for (_, answer), count in self.pairs.items() if answer not in LABELS)

    @property
    def commonest(self) -> int:
        """How many answers would be right if every answer were the commonest gold label."""
        gold: Counter[str] = Counter()
        for (label, _), count in self.pairs.items():
            gold[label] += count
        return max(gold.values(), default=0)


def command(rows: int | None) -> list[str]:
    line = ["shoal", "run", "examples/reviews.csv", "-o", "out/demo/reviews.jsonl", "--model", "demo"]
    line += ["--prompt", "Review: {text}\nSentiment:\n", "--examples", "examples/reviews.examples.csv"]
    line += ["--choice", ",".join(LABELS), "--temperature", "0", "--keep", GOLD]
    return line if rows is None else [*line, "--limit", str(rows)]


def typed(line: Iterable[str]) -> str:
    """The command as one types it in bash."""

    def quoted(word: str) -> str:
        if "\n" in word:
            return "$'" + word.replace("'", "\\'").replace("\n", "\\n") + "'"
        return word if re.fullmatch(r"[\w./,-]+", word) else f"'{word}'"

    return " ".join(map(quoted, line))


def score(output: Path) -> Score:
    """Read a file of result lines; lines without an answer are left out.

    Raises:
        KeyError: the gold label was not kept in the results.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    prompt = computed = saved = 0
    for text in output.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["response"] is None:
            continue
        body, accounts = line["response"]["body"], line["shoal"]
        pairs[accounts["columns"][GOLD], body["choices"][0]["text"]] += 1
        tokens = body["usage"]["prompt_tokens"]
        prompt += tokens
        computed += accounts["computed_tokens"]
        saved += tokens if "folded_into" in accounts else accounts["cached_tokens"]
    return Score(pairs, prompt, computed, saved)


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927), which stays inside 0..1 where the usual one does not."""
    share, square = right / total, z * z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return middle - half, middle + half


def show(score: Score, rows: int, console: Console) -> None:
    """Print the figures; ``rows`` is how many answers there should be."""
    low, high = wilson(score.right, score.answered)
    accuracy, baseline = score.right / score.answered, score.commonest / score.answered
    table = Table(title="answers by gold label", title_justify="left")
    table.add_column("gold")
    others = sorted({answer for _, answer in score.pairs} - set(LABELS))
    for answer in (*LABELS, *others):
        table.add_column(answer, justify="right")
    for gold in LABELS:
        table.add_row(gold, *(str(score.pairs[gold, answer]) for answer in (*LABELS, *others)))
    console.print(table)
    lines = {
        "rows answered": f"{score.answered} of {rows}",
        "accuracy": f"{accuracy:.1%}  (95% interval {low:.1%} to {high:.1%})",
        "always the commonest label": f"{baseline:.1%}",
        "points above that": f"{100 * (accuracy - baseline):.1f}",
        "malformed labels": str(score.malformed),
        "prompt tokens": f"{score.prompt_tokens:,}",
        "saved by sharing": f"{score.saved_tokens:,}  ({score.saved_tokens / score.prompt_tokens:.1%})",
    }
    for name, value in lines.items():
        console.print(f"{name:<27} {value}", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="label only so many rows")
    rows = parser.parse_args().rows
    console = Console()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    line = command(rows)
    console.print(f"$ {typed(line)}", style="bold", highlight=False, markup=False, soft_wrap=True)
    program = Path(sys.executable).parent / line[0]
    code = subprocess.run([str(program), *line[1:]], cwd=ROOT, check=False).returncode
    output = OUTPUT / "reviews.jsonl"
    if code or not output.exists():
        return code or 1
    with (HERE / "reviews.csv").open(newline="", encoding="utf-8") as file:
        wanted = sum(1 for _ in csv.DictReader(file))
    wanted = wanted if rows is None else min(rows, wanted)
    result = score(output)
    if result.answered:
        console.print()
        show(result, wanted, console)
    return 0 if result.answered == wanted and not result.malformed else 1


if __name__ == "__main__":
    sys.exit(main())

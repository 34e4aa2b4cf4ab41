"""The docs pages of systems and policies, written from their docstrings and what was last reproduced.

    python -m shoal.experiments.pages docs

writes the index ``docs/policies.md`` and renews the pages in ``docs/systems/``, whose results stay. New
results come from ``shoal reproduce NAME --page docs/systems``.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

from shoal import __version__
from shoal.core import policies
from shoal.core.policy import SEAMS, Policy, Range, seams_of
from shoal.experiments import text
from shoal.experiments.claims import Outcome
from shoal.experiments.registry import description, registry

RESULTS = "## Reproduced"
"""Everything from this heading on comes from a run."""
IN_FORCE = {
    "hydragen": "No policy: it is part of the compiled kernels, and in force wherever they compute.",
    "vattention": "No policy but a layout of KV memory: `--layout contiguous`.",
}
"""How a system without a policy is chosen."""
QUESTIONS = {
    "order": "Who is next?",
    "admission": "How many rows in this step, and may this one enter?",
    "victim": "Memory is full: who yields?",
    "retention": "Which idle cached page goes first?",
    "reuse": "What of a whole job is computed once, and in which order do its rows run?",
}


def write_page(outcome: Outcome, drawn: Path | None, folder: Path) -> Path:
    """Write ``NAME.md``, in which ``drawn`` is the picture of the run; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{outcome.name}.md"
    page.write_text(f"{static_part(outcome.name)}\n{results(outcome, drawn)}", encoding="utf-8")
    return page


def static_part(name: str) -> str:
    """What a system's page says without a run."""
    lead, _, rest = description(name).partition("\n\n")
    parts = [
        f"# {name}",
        *(_policy(name) if name in policies.POLICIES["policy"] else [IN_FORCE[name]]),
        "## The experiment",
        prose(lead),
        prose(rest),
        f"```sh\nshoal reproduce {name}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _policy(name: str) -> list[str]:
    """What a system's policy is, and how to choose it."""
    policy = policies.registry("policy").get(name)
    return [
        prose(inspect.getdoc(policy) or ""),
        "## Switch it on",
        f"It answers {_answers(policy)}.",
        f"```sh\nshoal run IN.jsonl -o OUT.jsonl --model MODEL --policy {name}\n```",
        f'```python\nllm = LLM(MODEL, policy="{name}")\n```',
        _parameters(policy),
    ]


def results(outcome: Outcome, drawn: Path | None) -> str:
    """What a run found, the picture included."""
    rows = [
        (*text.cells(claim)[:4], "" if claim.needs else claim.kind, text.verdict(claim))
        for claim in outcome.claims
    ]
    flags = f" --seed {outcome.trial.seed}" + (" --quick" if outcome.trial.quick else "")
    parts = [
        RESULTS,
        f"`shoal reproduce {outcome.name}{flags}`, shoal {__version__}, {outcome.seconds:.0f} s:",
        _table(("claim", "baseline", "value", "should be", "kind", "verdict"), rows),
    ]
    if drawn is not None:
        parts.append(f"![{outcome.name}: the picture of this run]({drawn.name})")
    for table in outcome.tables:
        parts.append(f"### {table.title}")
        parts.append(_table(table.columns, [[text.number(cell) for cell in row] for row in table.rows]))
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """Every policy of this package by seam, and every system."""
    parts = [
        "# Policies",
        "Each answers one question of the engine and is chosen by name, with parameters as in "
        "`--order NAME:parameter=value`; **bold** is the default. A published system under `--policy` takes "
        "every seam that it answers. `shoal policies` lists those of installed packages too.",
        "## `--policy`",
        _table(
            ("system", "answers", ""),
            [(_linked(name), _answers(kind), _first(kind)) for name, kind in _kinds("policy")],
        ),
    ]
    for seam in SEAMS:
        rows = [(_marked(seam, name), _values(kind), _first(kind)) for name, kind in _kinds(seam)]
        parts += [f"## `--{seam}`", QUESTIONS[seam], _table(("name", "parameters", ""), rows)]
    return "\n\n".join(parts) + "\n"


def prose(docstring: str) -> str:
    """A docstring as Markdown, without its list of arguments, which becomes a table of its own."""
    return _split(docstring)[0].replace("``", "`")


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """The text, and what it says under ``Args:`` of each name."""
    before, heading, rest = docstring.partition("\nArgs:\n")
    lines = rest.splitlines()
    count = next((i for i, line in enumerate(lines) if line and not line.startswith("    ")), len(lines))
    said: dict[str, str] = {}
    names: list[str] = []
    for line in lines[:count]:
        if found := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = found[1].split(", ")
            said |= dict.fromkeys(names, found[2])
        else:
            said |= {name: f"{said[name]} {line.strip()}".strip() for name in names}
    after = "\n".join(lines[count:]) if heading else ""
    return f"{before.strip()}\n\n{after.strip()}".strip(), said


def _kinds(seam: str) -> list[tuple[str, type[Policy]]]:
    """The policies of this package, installed ones left out: a page is the same everywhere."""
    known = policies.registry(seam)
    return [(name, known.get(name)) for name in sorted(policies.POLICIES[seam])]


def _parameters(kind: type[Policy]) -> str:
    said = _split(inspect.getdoc(kind) or "")[1]
    rows = []
    for name, parameter in kind.parameters().items():
        hint, limits = _unpacked(parameter.annotation)
        between = f"{limits.low:,} to {limits.high:,}" if limits else ""
        meaning = said.get(name, "").replace("``", "`")
        rows.append((f"`{name}`", _type(hint), between, f"`{parameter.default}`", meaning))
    titles = ("parameter", "type", "range", "default", "")
    return _table(titles, rows) if rows else "It has no parameters."


def _values(kind: type[Policy]) -> str:
    found = kind.parameters().items()
    return ", ".join(f"`{name}={parameter.default}`" for name, parameter in found)


def _unpacked(annotation: object) -> tuple[object, Range | None]:
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, None
    hint, *extra = typing.get_args(annotation)
    return hint, next((item for item in extra if isinstance(item, Range)), None)


def _type(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace(" | ", " or ")


def _marked(seam: str, name: str) -> str:
    text = _linked(name)
    return f"**{text}**" if policies.DEFAULTS[seam] == name else text


def _linked(name: str) -> str:
    return f"[{name}](systems/{name}.md)" if name in registry().names() else name


def _first(kind: type[Policy]) -> str:
    return prose(inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def _answers(kind: type[Policy]) -> str:
    layout = getattr(kind, "layout", None)
    return _listed([f"`--{seam}`" for seam in seams_of(kind)] + [f"`--layout {layout}`"] * bool(layout))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def renew(folder: Path) -> list[Path]:
    """Write the index and the static part of every system's page; results stand. Returns all pages."""
    systems = folder / "systems"
    systems.mkdir(parents=True, exist_ok=True)
    pages = [folder / "policies.md"]
    pages[0].write_text(index(), encoding="utf-8")
    for name in registry().names():
        page = systems / f"{name}.md"
        old = page.read_text(encoding="utf-8") if page.exists() else ""
        found = "\n" + RESULTS + old.partition("\n" + RESULTS)[2] if RESULTS in old else ""
        page.write_text(static_part(name) + found, encoding="utf-8")
        pages.append(page)
    return pages


if __name__ == "__main__":
    for written in renew(Path(sys.argv[1])):
        print(written)

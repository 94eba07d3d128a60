"""Tables made from what is registered, so that they cannot fall behind: metrics, verdicts, formats, options.

Directives, for use in the pages: ``metrics-table``, ``verdicts-table``, ``formats-table``, ``command-options NAME``.
"""

import importlib
import re
from collections.abc import Iterable, Sequence

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

Cell = list[nodes.Node]
PLURAL = re.compile(r"(?<!`)`([\w.]+)`(?=\w)")
LITERAL = re.compile(r"(``.+?``|`.+?`|\*\*.+?\*\*)")


def text(content: object) -> Cell:
    """One paragraph of plain words."""
    return [nodes.paragraph("", str(content))]


def code(content: object) -> Cell:
    """One paragraph of code."""
    return [nodes.paragraph("", "", nodes.literal("", str(content)))]


def marked(content: str) -> Cell:
    """One paragraph in which `code` in backticks is code."""
    pieces: list[nodes.Node] = []
    for piece in LITERAL.split(content):
        bare = piece.strip("`*")
        pieces.append(nodes.literal("", bare) if piece.startswith("`") else nodes.Text(bare if bare else piece))
    return [nodes.paragraph("", "", *pieces)]


def small(content: str) -> Cell:
    """A source: one paragraph in italics."""
    return [nodes.paragraph("", "", nodes.emphasis("", content))]


def table(titles: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[Cell]]) -> nodes.table:
    """Build the docutils table."""
    group = nodes.tgroup(cols=len(titles))
    group += [nodes.colspec(colwidth=width) for width in widths]
    head, body = nodes.thead(), nodes.tbody()
    head += _row([text(title) for title in titles])
    body += [_row(row) for row in rows]
    group += [head, body]
    built = nodes.table(classes=["colwidths-given"])
    built += group
    return built


def _row(cells: Sequence[Cell]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        entry = nodes.entry()
        entry += cell
        row += entry
    return row


class Registered(SphinxDirective):
    """A directive whose page is read again on every build: what it shows lies in the code."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return [self.build()]

    def build(self) -> nodes.Node:
        raise NotImplementedError


class MetricsTable(Registered):
    def build(self) -> nodes.Node:
        from netspectra.metrics import METRICS

        rows = [
            [
                code(entry.name),
                text(entry.formula),
                text(entry.range),
                [*marked(entry.meaning + " With `--thorough`." * entry.thorough), *small(entry.reference)],
            ]
            for entry in METRICS.values()
        ]
        return table(["Metric", "Formula", "Range", "What it says"], [18, 26, 12, 44], rows)


class VerdictsTable(Registered):
    def build(self) -> nodes.Node:
        from netspectra.verdicts import RULES

        rows = [
            [
                code(rule.name),
                text(rule.level),
                text(rule.standing),
                [*text(rule.advice), *(text(rule.study) if rule.study else []), *small(rule.reference)],
            ]
            for rule in RULES
        ]
        return table(["Rule", "Level", "Standing", "What to do"], [20, 10, 14, 56], rows)


class FormatsTable(Registered):
    def build(self) -> nodes.Node:
        from netspectra.sources import FORMATS

        rows = []
        for reader in FORMATS.values():
            said = (importlib.import_module(type(reader).__module__).__doc__ or "").split("\n\n")[0]
            said = " ".join(said.split()).removeprefix(f"{reader.name}: ")
            needs = code(f"pip install 'netspectra[{reader.extra}]'") if reader.extra else text("nothing more")
            rows.append([code(reader.name), marked(said), needs])
        return table(["Format", "What is read", "Needs"], [18, 54, 28], rows)


class CommandOptions(Registered):
    required_arguments = 1

    def build(self) -> nodes.Node:
        import typer.main

        from netspectra.faces.cli.commands import app

        command = typer.main.get_command(app).commands[self.arguments[0]]
        rows = []
        for parameter in command.params:
            if not parameter.hidden:
                many = " May be given more than once." if parameter.multiple else ""
                rows.append([code(_usage(parameter)), text((parameter.help or "") + many), _default(parameter)])
        return table(["Argument or option", "Meaning", "Default"], [32, 50, 18], rows)


def _usage(parameter) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'VALUE'}"


def _default(parameter) -> Cell:
    if parameter.required:
        return text("required")
    if isinstance(parameter.show_default, str):
        return text(parameter.show_default)
    if getattr(parameter, "is_flag", False):  # arguments have none
        return text("off")
    return text("none") if parameter.default in (None, ()) else code(parameter.default)


def readable(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep reStructuredText from taking norms (||W||_F) for substitutions, and let letters follow `Code`s."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            lines[place] = PLURAL.sub(r"``\1``\\ ", line.replace("||", r"\|\|"))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("metrics-table", MetricsTable)
    app.add_directive("verdicts-table", VerdictsTable)
    app.add_directive("formats-table", FormatsTable)
    app.add_directive("command-options", CommandOptions)
    app.connect("autodoc-process-docstring", readable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Run what the documentation shows: Python blocks in Markdown files, and examples in docstrings."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser

markdown = Sybil(
    name="markdown",
    parsers=[PythonCodeBlockParser()],
    patterns=["*.md"],
    excludes=["docs/_build/*", ".venv/*"],
)
docstrings = Sybil(name="docstrings", path="src", parsers=[DocTestParser()], patterns=["*.py"])

pytest_collect_file = (markdown + docstrings).pytest()

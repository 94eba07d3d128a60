from pathlib import Path
import sys
from benchmarks.generalization.families import families
from benchmarks.generalization.train import Grid
from netspectra.linalg.threads import threads
HERE=Path(__file__).parent
def main(quick=False):
    with threads(1):
        rows=families(Grid(), HERE/"networks.jsonl", lambda s: print(s, file=sys.stderr, flush=True))

"""netspectra: the spectral workbench for neural networks.

From a live module or a checkpoint, every weight matrix's singular values with a bound on their error, and what follows
from them. Everything here is loaded when it is first used.

>>> import netspectra as ns, torch
>>> ns.svdvals(torch.eye(3)).values.tolist()
[1.0, 1.0, 1.0]
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and "-m netspectra" in " ".join(sys.orig_argv) and not sys.flags.safe_path:
    del sys.path[0]  # the current folder, which may be a stranger's checkpoint with a torch.py in it

from typing import TYPE_CHECKING, Any

from netspectra.version import __version__

if TYPE_CHECKING:
    from netspectra.analysis import Analysis
    from netspectra.doors.analysis import analyze
    from netspectra.doors.calibration import calibrate
    from netspectra.doors.comparison import compare, pissa
    from netspectra.doors.compression import compress, load, save
    from netspectra.doors.distillation import distill, expressivity
    from netspectra.doors.drift import DriftReference, drift
    from netspectra.doors.geometry import geometry
    from netspectra.doors.interpretation import interpret
    from netspectra.doors.monitoring import Monitor
    from netspectra.doors.quantization import quantize
    from netspectra.doors.series import change_points
    from netspectra.doors.training import initialize_, trainability
    from netspectra.errors import EnvironmentFailure, InputRefused, NetspectraError, NotDecomposable
    from netspectra.linalg.spectrum import Spectrum
    from netspectra.linalg.svd import svd
    from netspectra.linalg.values import svdvals
    from netspectra.live.norm import operator_norm
    from netspectra.live.penalties import OrthogonalityPenalty, SpectralPenalty
    from netspectra.plan import Plan
    from netspectra.sources import open
    from netspectra.timeline import Timeline
    from netspectra.verbs.compare.result import Comparison
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.geometry import Geometry
    from netspectra.verbs.quantize.options import QuantizeOptions
    from netspectra.verbs.rank import rank
    from netspectra.verbs.train.findings import Trainability
    from netspectra.verbs.train.initialization import Initialization
    from netspectra.verbs.train.lipschitz import lipschitz
    from netspectra.verbs.train.normalize import normalize_, spectral_norm
    from netspectra.verbs.watch.alarms import Alarm, AlarmRaised
    from netspectra.verbs.watch.options import MonitorOptions

__all__ = [
    "Alarm",
    "AlarmRaised",
    "Analysis",
    "Comparison",
    "CompressOptions",
    "DriftReference",
    "EnvironmentFailure",
    "Geometry",
    "Initialization",
    "InputRefused",
    "Monitor",
    "MonitorOptions",
    "NetspectraError",
    "NotDecomposable",
    "OrthogonalityPenalty",
    "Plan",
    "QuantizeOptions",
    "SpectralPenalty",
    "Spectrum",
    "Timeline",
    "Trainability",
    "__version__",
    "analyze",
    "calibrate",
    "change_points",
    "compare",
    "compress",
    "distill",
    "drift",
    "expressivity",
    "geometry",
    "initialize_",
    "interpret",
    "lipschitz",
    "load",
    "normalize_",
    "open",
    "operator_norm",
    "pissa",
    "quantize",
    "rank",
    "save",
    "spectral_norm",
    "svd",
    "svdvals",
    "trainability",
]

_HOME = {
    "Analysis": "netspectra.analysis",
    "analyze": "netspectra.doors.analysis",
    "calibrate": "netspectra.doors.calibration",
    "compare": "netspectra.doors.comparison",
    "pissa": "netspectra.doors.comparison",
    "compress": "netspectra.doors.compression",
    "load": "netspectra.doors.compression",
    "save": "netspectra.doors.compression",
    "DriftReference": "netspectra.doors.drift",
    "drift": "netspectra.doors.drift",
    "distill": "netspectra.doors.distillation",
    "expressivity": "netspectra.doors.distillation",
    "geometry": "netspectra.doors.geometry",
    "Monitor": "netspectra.doors.monitoring",
    "change_points": "netspectra.doors.series",
    "interpret": "netspectra.doors.interpretation",
    "quantize": "netspectra.doors.quantization",
    "initialize_": "netspectra.doors.training",
    "trainability": "netspectra.doors.training",
    "EnvironmentFailure": "netspectra.errors",
    "InputRefused": "netspectra.errors",
    "NetspectraError": "netspectra.errors",
    "NotDecomposable": "netspectra.errors",
    "Spectrum": "netspectra.linalg.spectrum",
    "svd": "netspectra.linalg.svd",
    "svdvals": "netspectra.linalg.values",
    "operator_norm": "netspectra.live.norm",
    "OrthogonalityPenalty": "netspectra.live.penalties",
    "SpectralPenalty": "netspectra.live.penalties",
    "Plan": "netspectra.plan",
    "open": "netspectra.sources",
    "Comparison": "netspectra.verbs.compare.result",
    "CompressOptions": "netspectra.verbs.compress.options",
    "Geometry": "netspectra.verbs.geometry",
    "QuantizeOptions": "netspectra.verbs.quantize.options",
    "rank": "netspectra.verbs.rank",
    "Trainability": "netspectra.verbs.train.findings",
    "Initialization": "netspectra.verbs.train.initialization",
    "lipschitz": "netspectra.verbs.train.lipschitz",
    "normalize_": "netspectra.verbs.train.normalize",
    "spectral_norm": "netspectra.verbs.train.normalize",
    "Alarm": "netspectra.verbs.watch.alarms",
    "AlarmRaised": "netspectra.verbs.watch.alarms",
    "MonitorOptions": "netspectra.verbs.watch.options",
    "Timeline": "netspectra.timeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'netspectra' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

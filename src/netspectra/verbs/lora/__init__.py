"""Low-rank adapters made from spectra: of the difference of two checkpoints, or from the top of one (PiSSA)."""

from netspectra.verbs.lora.extract import extract_lora
from netspectra.verbs.lora.options import LoraOptions, asked_rank
from netspectra.verbs.lora.pissa import pissa
from netspectra.verbs.lora.result import Adapted, Extraction

__all__ = ["Adapted", "Extraction", "LoraOptions", "asked_rank", "extract_lora", "pissa"]

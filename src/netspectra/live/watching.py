"""Look on while some modules of a model run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["watching"]


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Within the block, tell of every run of these modules: their name, first input and output.

    >>> import torch
    >>> layer = torch.nn.ReLU()
    >>> with watching({"layer": layer}, lambda name, x, y: print(name, x.item(), y.item())):
    ...     _ = layer(torch.tensor(-2.0))
    layer -2.0 0.0
    """

    def hook(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            see(name, args[0] if args else next(iter(kwargs.values())), output)

        return look

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

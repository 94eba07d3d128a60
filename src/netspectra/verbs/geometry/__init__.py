"""What a layer does to space: V, S and U acting step by step, on a sphere and on real inputs."""

from netspectra.verbs.geometry.look import geometry, one_of
from netspectra.verbs.geometry.result import Direction, Geometry

__all__ = ["Direction", "Geometry", "geometry", "one_of"]

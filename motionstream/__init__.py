"""MotionStream: drag any point of a picture and watch it move, as endless streaming video.

The names below are imported when they are first used, so that `import motionstream` costs nothing.
"""

import importlib
import os

# Threads of PyTorch that wait for each other must soon sleep: spinning, they keep the cores from whatever else there is
# to do (JPEGs, a browser), and beside one busy process a stream is two to three times slower. But to wake one takes as
# long as a small operation, so they spin for some 50 microseconds first. OpenMP reads it once, when PyTorch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")

_EXPORTS = {
    "Chunk": "streaming",
    "InputError": "errors",
    "Tracks": "tracks",
    "load_model": "model.checkpoint",
    "stream": "streaming",
}
__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'motionstream' has no attribute {name!r}")
    return getattr(importlib.import_module(f"motionstream.{_EXPORTS[name]}"), name)

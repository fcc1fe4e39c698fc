"""MotionStream: drag any point of a picture and watch it move, as endless streaming video.

The names below are imported when they are first used, so that `import motionstream` costs nothing.
"""

import importlib

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

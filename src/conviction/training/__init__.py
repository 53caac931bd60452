"""Training: losses, one loop, and the guard with its sensors, which stops it before the model breaks.

The names of ``__init__.pyi`` are loaded on first use: torch comes with some of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

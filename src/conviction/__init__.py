"""Measure what a language model is convinced of, and change it without breaking it.

::

    from conviction import load_model, load_topic, probe

    card = probe(load_model(), load_topic("obesity"))
    print(card.summary.verdict)

The public names are those of ``__init__.pyi``; each is loaded on first use, so that importing the package
(and ``--help``) stays quick.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Measure what a language model is convinced of, and change it without breaking it.

::

    from conviction import apply, probe

    print(probe("smollm2-135m", "obesity", quick=True).summary.verdict)
    outcome = apply("dpo", "smollm2-135m", "obesity", run="runs/x", learning_rate=1e-4)

The public names are those of ``__init__.pyi``; each is loaded on first use, so that importing the package
(and ``--help``) stays quick. The verbs are in ``conviction.verbs``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""One file a rule. Its docstring is the rule's page; it ends in ``RULE``."""
